"""`imagefolder:PATH`: PATH/train and PATH/val or PATH/test, one folder of images a class; as ImageNet is kept."""

from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from gdkd_cache.data.source import EncodedSource
from gdkd_cache.errors import SourceError


def open_imagefolder(path: Path, split: str) -> EncodedSource:
    """Open a split; classes are the train folders' names in sorted order, keys are paths under PATH.

    Raises:
        SourceError: a folder is missing or empty, or the test split has a class that train has not.
    """
    if not path.is_dir():
        raise SourceError(f"imagefolder: {path} is no folder")
    folders = ["train"] if split == "train" else ["val", "test"]
    folder = next((path / name for name in folders if (path / name).is_dir()), None)
    if folder is None:
        raise SourceError(f"imagefolder: {path} has no {' or '.join(folders)} folder")
    try:
        classes, ids = find_classes(path / "train")
        samples = make_dataset(folder, ids, extensions=IMG_EXTENSIONS, allow_empty=True)
        found = set(find_classes(folder)[0])
    except FileNotFoundError:
        raise SourceError(
            f"imagefolder: {folder} or {path / 'train'} holds no class folders; put each image into a folder of its "
            "class's name (ImageNet's val images are distributed without: the customary valprep.sh sorts them)"
        ) from None
    if unknown := sorted(found - set(classes)):
        raise SourceError(f"imagefolder: {folder / unknown[0]} is no class of {path / 'train'}")
    if not samples:
        raise SourceError(f"imagefolder: {folder} holds no images ({', '.join(IMG_EXTENSIONS)})")
    files = [Path(file) for file, _ in samples]
    return EncodedSource(
        name=f"imagefolder/{folder.name}",
        files=files,
        labels=np.asarray([label for _, label in samples], np.int64),
        keys=[file.relative_to(path).as_posix() for file in files],
        classes=classes,
    )
