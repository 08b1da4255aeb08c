"""`cifar10:PATH`, `cifar100:PATH`: CIFAR's python format, read by torchvision, which checks the files' MD5 first."""

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100

from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import SourceError


def open_cifar10(path: str, *, split: str, download: bool) -> ArraySource:
    """Open the train (50,000 rows) or test (10,000 rows) split.

    Raises:
        SourceError: the files are missing or damaged, or the download fails.
    """
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    return _open(CIFAR10, "10", path, split, download, mean=mean, std=std)


def open_cifar100(path: str, *, split: str, download: bool) -> ArraySource:
    """As `open_cifar10`, of CIFAR-100's fine classes."""
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    return _open(CIFAR100, "100", path, split, download, mean=mean, std=std)


def _open(
    kind: type[CIFAR10],
    number: str,
    path: str,
    split: str,
    download: bool,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> ArraySource:
    try:
        dataset = kind(path, train=split == "train", download=download)
    except RuntimeError:
        raise SourceError(
            f"{path} does not hold CIFAR-{number} ({kind.base_folder}/ with its train, test and meta files, unchanged)"
            "; add --download to fetch it there"
        ) from None
    except OSError as error:
        raise SourceError(f"CIFAR-{number} cannot be read or fetched to {path}: {error}") from None
    return ArraySource(
        name=f"cifar{number}/{split}",
        images=np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2)),
        labels=np.asarray(dataset.targets, np.int64),
        keys=[f"{split}/{row:05d}" for row in range(len(dataset.data))],
        classes=list(dataset.classes),
        mean=mean,
        std=std,
    )
