"""Images as pictures for a page: small files, and large enough to be seen."""

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from gdkd_cache.report.base import Picture

_SHORTEST, _LONGEST = 96, 128
_LEAST = 8


def to_picture(image: np.ndarray, captions: Sequence[str], described: str) -> Picture:
    """An image as PNG: enlarged by a whole factor, pixel for pixel, or reduced, to a longest side of 96 to 128 pixels.

    Args:
        image: uint8 [height, width, 3].
        captions: lines below it.
        described: what it shows, for those who cannot see it.
    """
    picture = Image.fromarray(image)
    longest = max(picture.size)
    if longest > _LONGEST:
        size = [max(1, round(side * _LONGEST / longest)) for side in picture.size]
        picture = picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    elif longest < _SHORTEST:
        factor = _LONGEST // longest
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return Picture(png=_png(picture), captions=captions, described=described)


def picture_size(png: bytes) -> tuple[int, int]:
    """Width and height in pixels."""
    with Image.open(io.BytesIO(png)) as picture:
        return picture.size


def shrunk(png: bytes, part: float) -> bytes:
    """The same picture with fewer pixels, for about this part of its bytes, below 1; a few pixels at least."""
    with Image.open(io.BytesIO(png)) as picture:
        factor = 0.9 * math.sqrt(part)
        width, height = (min(side, max(_LEAST, int(side * factor))) for side in picture.size)
        return _png(picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS))


def _png(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, "PNG", optimize=True)
    return data.getvalue()
