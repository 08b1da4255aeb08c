"""`ade20k:PATH`: the folder ADEChallengeData2016, of scene parsing; its validation images are the test split."""

from dataclasses import dataclass

from gdkd_cache.data.masks import id_table
from gdkd_cache.data.source import EncodedSource
from gdkd_cache.data.sources.lists import read_table
from gdkd_cache.data.sources.masked import images_in, masked_source, split_folder
from gdkd_cache.data.sources.splits import Splits, parted
from gdkd_cache.fields import option

_OTHER = 0
_COLUMNS = 5
"""Of objectInfo150.txt: number, three counts, names with commas between."""


@dataclass(frozen=True, kw_only=True)
class _Splits(Splits):
    """What its splits are called."""

    train: str = option("training", "The train split.")


def open_ade20k(path: str, *, split: str) -> EncodedSource:
    """Open a split (training 20,210 rows, validation 2000), of the classes in objectInfo150.txt; keys are paths under
    PATH.

    Raises:
        UsageError: other settings after PATH than `train` and `test`, or a folder out of PATH.
        SourceError: a folder or list is missing or malformed, or an image has no mask.
    """
    root, splits = parted("ade20k", path, _Splits)
    folder = split_folder("ade20k", root / "images", splits, split)
    _, *rows = read_table(root / "objectInfo150.txt", _COLUMNS, "\t")
    classes = [row[-1].partition(",")[0].strip() for row in rows]
    return masked_source(
        f"ade20k/{folder.name}",
        root,
        images_in(folder),
        lambda image: (root / "annotations" / image.relative_to(root / "images")).with_suffix(".png"),
        classes,
        id_table(range(1, len(classes) + 1), [_OTHER]),
    )
