"""`cub200:PATH`: the folder CUB_200_2011 as it is distributed, with its own split."""

from pathlib import Path

import numpy as np

from gdkd_cache.data.source import EncodedSource
from gdkd_cache.data.sources.lists import listed_path, read_table
from gdkd_cache.errors import SourceError

_SPLITS = {"train": "1", "test": "0"}


def open_cub200(folder: str, *, split: str) -> EncodedSource:
    """Open the train (5994 rows) or test (5794 rows) split in the order of images.txt; keys are paths under PATH.

    Raises:
        SourceError: a list is missing or malformed, or two of them do not agree.
    """
    path = Path(folder)
    classes = _by_id(path / "classes.txt")
    images = _by_id(path / "images.txt")
    labels = _of_images(path / "image_class_labels.txt", images, set(classes))
    splits = _of_images(path / "train_test_split.txt", images, set(_SPLITS.values()))
    chosen = [image for image in images if splits[image] == _SPLITS[split]]
    files = [listed_path(path / "images", images[image], path / "images.txt") for image in chosen]
    ids = {class_id: label for label, class_id in enumerate(classes)}
    return EncodedSource(
        name=f"cub200/{split}",
        files=files,
        labels=np.array([ids[labels[image]] for image in chosen], np.int64),
        keys=[file.relative_to(path).as_posix() for file in files],
        classes=list(classes.values()),
    )


def _by_id(path: Path) -> dict[str, str]:
    """Lines of an id and a value, in order."""
    pairs = read_table(path, 2)
    values = dict(pairs)
    if len(values) != len(pairs):
        raise SourceError(f"{path} names an id more than once; copy it again")
    return values


def _of_images(path: Path, images: dict[str, str], allowed: set[str]) -> dict[str, str]:
    """A value for every image."""
    values = _by_id(path)
    if wrong := next((image for image in images if values.get(image) not in allowed), None):
        raise SourceError(
            f"{path} has {values.get(wrong, 'nothing')} for image {wrong} of images.txt, which is none of the "
            f"{len(allowed)} allowed; copy the dataset again"
        )
    return values
