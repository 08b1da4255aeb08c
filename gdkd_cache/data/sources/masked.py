"""What sources with a mask for each image have in common: splits, pairs of files, and one source of them."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from gdkd_cache.data.masks import MaskFiles
from gdkd_cache.data.source import EncodedSource
from gdkd_cache.data.sources.splits import Splits
from gdkd_cache.errors import SourceError


def split_folder(kind: str, images: Path, splits: Splits, split: str) -> Path:
    """The folder of a split, in a folder of images.

    Raises:
        SourceError: there is none.
    """
    names = splits.candidates(split)
    found = next((images / name for name in names if (images / name).is_dir()), None)
    if found is None:
        raise SourceError(
            f"{kind}: {images} has no {' or '.join(names)} folder; the dataset must lie there as it was unpacked, or "
            f"name another as in {kind}:PATH:{split}=FOLDER"
        )
    return found


def images_in(folder: Path) -> list[Path]:
    """The image files in a folder and those in it, in the order of their paths."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS)


def masked_source(
    name: str,
    root: Path,
    images: Iterable[Path],
    mask_of: Callable[[Path], Path],
    classes: Sequence[str],
    ids: np.ndarray,
) -> EncodedSource:
    """A source of image files and their masks; keys are the images' paths under the root.

    Args:
        name: of the source: KIND/SPLIT.
        root: the folder of the dataset.
        images: in the order of rows.
        mask_of: where an image's mask is.
        classes: their names.
        ids: what ids in masks mean, from `id_table`.

    Raises:
        SourceError: there is no image, or one has no mask.
    """
    images = list(images)
    masks = [mask_of(image) for image in images]
    if not images:
        raise SourceError(f"{name}: {root} holds no images of it; the dataset must lie there as it was unpacked")
    if missing := next((pair for pair in zip(images, masks, strict=True) if not pair[1].is_file()), None):
        raise SourceError(f"{name}: image {missing[0]} has no mask: {missing[1]} is no file; every image needs one")
    keys = [image.relative_to(root).as_posix() for image in images]
    return EncodedSource(
        name=name,
        files=images,
        labels=np.zeros(len(images), np.int64),
        keys=keys,
        classes=classes,
        masks=MaskFiles(keys=keys, files=masks, ids=ids),
    )
