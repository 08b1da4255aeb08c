"""`tiny-imagenet:PATH`: the folder tiny-imagenet-200 as it is distributed; its val images are the test split."""

from pathlib import Path

import numpy as np

from gdkd_cache.data.source import EncodedSource
from gdkd_cache.data.sources.lists import listed_path, read_table
from gdkd_cache.errors import SourceError


def open_tiny_imagenet(folder: str, *, split: str) -> EncodedSource:
    """Open the train (100,000 rows, 1.2 GB of pixels) or test (10,000 rows) split; keys are paths under PATH.

    Classes are the WordNet ids in sorted order, as where the folders are read as classes, under their words.

    Raises:
        SourceError: a list or a folder is missing or malformed, or an unknown class.
    """
    path = Path(folder)
    wnids = sorted(wnid for (wnid,) in read_table(path / "wnids.txt", 1))
    words = dict(read_table(path / "words.txt", 2, "\t"))
    if nameless := next((wnid for wnid in wnids if wnid not in words), None):
        raise SourceError(f"{path / 'words.txt'} has no words for {nameless} of wnids.txt; copy the dataset again")
    files, labels = _train(path, wnids) if split == "train" else _val(path, wnids)
    keys = [file.relative_to(path).as_posix() for file in files]
    if len(set(keys)) != len(keys):
        raise SourceError(f"{path}: a list names a class or an image more than once; copy the dataset again")
    return EncodedSource(
        name=f"tiny-imagenet/{split}",
        files=files,
        labels=np.asarray(labels, np.int64),
        keys=keys,
        classes=[words[wnid] for wnid in wnids],
        wnids=wnids,
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2302, 0.2265, 0.2262),
    )


def _train(path: Path, wnids: list[str]) -> tuple[list[Path], list[int]]:
    files, labels = [], []
    for label, wnid in enumerate(wnids):
        folder = listed_path(path / "train", wnid, path / "wnids.txt") / "images"
        found = sorted(folder.glob("*.JPEG"))
        if not found:
            raise SourceError(f"{folder} holds no .JPEG images; the dataset must lie there as it was unpacked")
        files += found
        labels += [label] * len(found)
    return files, labels


def _val(path: Path, wnids: list[str]) -> tuple[list[Path], list[int]]:
    annotations = path / "val" / "val_annotations.txt"
    ids = {wnid: label for label, wnid in enumerate(wnids)}
    files, labels = [], []
    for name, wnid in read_table(annotations, 2, "\t"):
        if wnid not in ids:
            raise SourceError(f"{annotations}: {name!r} is of class {wnid!r}, which wnids.txt does not name")
        files.append(listed_path(path / "val" / "images", name, annotations))
        labels.append(ids[wnid])
    return files, labels
