"""`cifar100:PATH`: CIFAR-100 in its python format, read by torchvision, which checks the files' MD5 first."""

import numpy as np
from torchvision.datasets import CIFAR100

from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import SourceError


def open_cifar100(path: str, *, split: str, download: bool) -> ArraySource:
    """Open the train (50,000 rows) or test (10,000 rows) split.

    Raises:
        SourceError: the files are missing or damaged, or the download fails.
    """
    try:
        dataset = CIFAR100(path, train=split == "train", download=download)
    except RuntimeError:
        raise SourceError(
            f"{path} does not hold CIFAR-100 (cifar-100-python/ with its train, test and meta files, unchanged); "
            "add --download to fetch it there"
        ) from None
    except OSError as error:
        raise SourceError(f"CIFAR-100 cannot be read or fetched to {path}: {error}") from None
    return ArraySource(
        name=f"cifar100/{split}",
        images=np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2)),
        labels=np.asarray(dataset.targets, np.int64),
        keys=[f"{split}/{row:05d}" for row in range(len(dataset.data))],
        classes=list(dataset.classes),
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    )
