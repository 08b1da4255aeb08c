"""`digits`: scikit-learn's 1797 real 8x8 images of handwritten digits; every fifth image is the test split."""

import numpy as np

from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import SourceError


def open_digits(*, split: str) -> ArraySource:
    """Open the train (1438 rows) or test (359 rows) split; pixels 0..16 are scaled to 0..255, in RGB.

    Raises:
        SourceError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SourceError("data digits needs scikit-learn: pip install 'gdkd-cache[demo]'") from None
    pixels, labels = load_digits(return_X_y=True)
    is_test = np.arange(len(labels)) % 5 == 4
    rows = np.flatnonzero(is_test if split == "test" else ~is_test)
    gray = np.rint(pixels[rows] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return ArraySource(
        name=f"digits/{split}",
        images=np.repeat(gray, 3, axis=1),
        labels=labels[rows].astype(np.int64),
        keys=[f"digits/{row:04d}" for row in rows],
        classes=[str(digit) for digit in range(10)],
        mean=(0.305, 0.305, 0.305),
        std=(0.376, 0.376, 0.376),
    )
