"""`voc:PATH`: a folder of Pascal VOC such as VOC2012, for segmentation; its val images are the test split."""

from pathlib import Path

from gdkd_cache.data.masks import id_table
from gdkd_cache.data.source import EncodedSource
from gdkd_cache.data.sources.lists import listed_path, read_table
from gdkd_cache.data.sources.masked import masked_source
from gdkd_cache.data.sources.splits import Splits, parted
from gdkd_cache.errors import SourceError

CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_VOID = 255


def open_voc(path: str, *, split: str) -> EncodedSource:
    """Open a split, a list in ImageSets/Segmentation, of 20 classes and the background; keys are paths under PATH.

    Raises:
        UsageError: other settings after PATH than `train` and `test`, or a list out of PATH.
        SourceError: a list is missing or empty, or an image has no mask.
    """
    root, splits = parted("voc", path, Splits)
    lists = [root / "ImageSets" / "Segmentation" / f"{name}.txt" for name in splits.candidates(split)]
    listed = next((one for one in lists if one.is_file()), None)
    if listed is None:
        raise SourceError(f"voc: there is no {lists[0]}; name another list as in voc:PATH:{split}=NAME")
    names = [name for (name,) in read_table(listed, 1)]
    return masked_source(
        f"voc/{listed.stem}",
        root,
        [listed_path(root / "JPEGImages", f"{name}.jpg", listed) for name in names],
        lambda image: root / "SegmentationClass" / Path(image.name).with_suffix(".png"),
        CLASSES,
        id_table(range(len(CLASSES)), [_VOID]),
    )
