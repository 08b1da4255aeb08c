"""`segfolder:PATH`: images/SPLIT and masks/SPLIT, masks in PNG files of the images' names; classes.txt names the ids.

`segfolder:PATH:train=FOLDER,test=FOLDER,ignore=ID` says what the splits are called, and which id is ignored.
"""

from dataclasses import dataclass

from gdkd_cache.data.masks import id_table
from gdkd_cache.data.source import EncodedSource
from gdkd_cache.data.sources.lists import read_list
from gdkd_cache.data.sources.masked import images_in, masked_source, split_folder
from gdkd_cache.data.sources.splits import Splits, parted
from gdkd_cache.fields import option

_CLASSES_BYTES = 2**23


@dataclass(frozen=True, kw_only=True)
class _Settings(Splits):
    """What splits are called, and what masks hold."""

    ignore: int = option(255, "The id of pixels that count nowhere.", least=0, most=2**16 - 1)


def open_segfolder(path: str, *, split: str) -> EncodedSource:
    """Open a split; keys are paths under PATH. A class is a line of classes.txt, its id the line's number, from 0.

    Raises:
        UsageError: other settings after PATH than `train`, `test` and `ignore`, or a folder out of PATH.
        SourceError: a folder or classes.txt is missing or empty, or an image has no mask.
    """
    root, settings = parted("segfolder", path, _Settings)
    folder = split_folder("segfolder", root / "images", settings, split)
    lines = read_list(root / "classes.txt", _CLASSES_BYTES).split("\n")
    classes = [line.strip() for line in lines if line.strip()]
    return masked_source(
        f"segfolder/{folder.name}",
        root,
        images_in(folder),
        lambda image: (root / "masks" / image.relative_to(root / "images")).with_suffix(".png"),
        classes,
        id_table(range(len(classes)), [settings.ignore]),
    )
