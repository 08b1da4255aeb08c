"""`cityscapes:PATH`: the official folders leftImg8bit and gtFine; its val images are the test split."""

from pathlib import Path

from gdkd_cache.data.masks import id_table
from gdkd_cache.data.source import EncodedSource
from gdkd_cache.data.sources.masked import masked_source, split_folder
from gdkd_cache.data.sources.splits import Splits, parted

CLASSES = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
"""The 19 classes that are evaluated, in the order of their train ids, with the ids of `labelIds` files
(cityscapesScripts, helpers/labels.py)."""
_MOST_ID = 33
_IGNORED = 255
_IMAGE = "_leftImg8bit.png"


def open_cityscapes(path: str, *, split: str) -> EncodedSource:
    """Open a split (train 2975 rows, val 500), of 19 classes; keys are paths under PATH.

    Masks are `_gtFine_labelIds.png`, or where there is none, `_gtFine_labelTrainIds.png`.

    Raises:
        UsageError: other settings after PATH than `train` and `test`, or a folder out of PATH.
        SourceError: a folder is missing or empty, or an image has no mask.
    """
    root, splits = parted("cityscapes", path, Splits)
    folder = split_folder("cityscapes", root / "leftImg8bit", splits, split)
    annotated = root / "gtFine" / folder.relative_to(root / "leftImg8bit")
    images = sorted(folder.glob(f"*/*{_IMAGE}"))

    def mask_of(image: Path, kind: str) -> Path:
        return annotated / image.parent.name / image.name.replace(_IMAGE, f"_gtFine_{kind}.png")

    kind, ids = "labelIds", id_table(list(CLASSES.values()), [*range(_MOST_ID + 1), _IGNORED])
    if images and not mask_of(images[0], kind).exists() and mask_of(images[0], "labelTrainIds").exists():
        kind, ids = "labelTrainIds", id_table(range(len(CLASSES)), [_IGNORED])
    name = f"cityscapes/{folder.name}"
    return masked_source(name, root, images, lambda image: mask_of(image, kind), list(CLASSES), ids)
