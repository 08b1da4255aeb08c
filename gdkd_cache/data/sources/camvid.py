"""`camvid:PATH`: CamVid as SegNet distributes it: train/ and trainannot/, val/ and valannot/, test/ and testannot/.

Its val images are the test split, as with other data; `camvid:PATH:test=test` takes the others.
"""

from gdkd_cache.data.masks import id_table
from gdkd_cache.data.source import EncodedSource
from gdkd_cache.data.sources.masked import images_in, masked_source, split_folder
from gdkd_cache.data.sources.splits import Splits, parted

CLASSES = (
    *("Sky", "Building", "Pole", "Road", "Pavement", "Tree"),
    *("SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist"),
)
_UNLABELLED = 11


def open_camvid(path: str, *, split: str) -> EncodedSource:
    """Open a split (train 367 rows, val 101, test 233), of 11 classes; keys are paths under PATH.

    Raises:
        UsageError: other settings after PATH than `train` and `test`, or a folder out of PATH.
        SourceError: a folder is missing or empty, or an image has no mask.
    """
    root, splits = parted("camvid", path, Splits)
    folder = split_folder("camvid", root, splits, split)
    annotated = folder.with_name(f"{folder.name}annot")
    return masked_source(
        f"camvid/{folder.name}",
        root,
        images_in(folder),
        lambda image: annotated / image.relative_to(folder),
        CLASSES,
        id_table(range(len(CLASSES)), [_UNLABELLED]),
    )
