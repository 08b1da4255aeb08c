"""`imagefolder:PATH`: PATH/train and PATH/val, valid, validation or test, one folder of images a class, as ImageNet.

`imagefolder:PATH:train=FOLDER,test=FOLDER` names other folders in PATH.
"""

from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from gdkd_cache.data.source import EncodedSource
from gdkd_cache.data.sources.names import class_names
from gdkd_cache.data.sources.splits import Splits, parted
from gdkd_cache.errors import SourceError


def open_imagefolder(path: str, *, split: str) -> EncodedSource:
    """Open a split; classes are the train folders' names in sorted order, keys are paths under PATH.

    Class names are those of a list in PATH, where there is one; see `class_names`.

    Raises:
        UsageError: other settings after PATH than `train` and `test`, or a folder out of PATH.
        SourceError: a folder is missing or empty, or the test split has a class that train has not.
    """
    root, splits = parted("imagefolder", path, Splits)
    if not root.is_dir():
        raise SourceError(f"imagefolder: {root} is no folder")
    train = root / splits.train
    folders = splits.candidates(split)
    folder = next((root / name for name in folders if (root / name).is_dir()), None)
    if folder is None:
        raise SourceError(
            f"imagefolder: {root} has no {' or '.join(folders)} folder; name another as in "
            f"imagefolder:PATH:{split}=FOLDER"
        )
    try:
        classes, ids = find_classes(train)
        samples = make_dataset(folder, ids, extensions=IMG_EXTENSIONS, allow_empty=True)
        found = set(find_classes(folder)[0])
    except FileNotFoundError:
        raise SourceError(
            f"imagefolder: {folder} or {train} holds no class folders; put each image into a folder of its "
            "class's name (ImageNet's val images are distributed without: the customary valprep.sh sorts them)"
        ) from None
    if unknown := sorted(found - set(classes)):
        raise SourceError(f"imagefolder: {folder / unknown[0]} is no class of {train}")
    if not samples:
        raise SourceError(f"imagefolder: {folder} holds no images ({', '.join(IMG_EXTENSIONS)})")
    files = [Path(file) for file, _ in samples]
    return EncodedSource(
        name=f"imagefolder/{folder.name}",
        files=files,
        labels=np.asarray([label for _, label in samples], np.int64),
        keys=[file.relative_to(root).as_posix() for file in files],
        classes=classes,
        names=class_names(root, classes),
    )
