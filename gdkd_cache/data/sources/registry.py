"""The datasets that a spec can name: one module each, and one line here."""

from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdkd_cache.errors import UsageError
from gdkd_cache.registry import Entry, Registry

if TYPE_CHECKING:
    import gdkd_cache.data.source

_HERE = "gdkd_cache.data.sources"

SOURCES: Registry[Callable[..., Any]] = Registry(
    "data",
    {
        "digits": Entry(f"{_HERE}.digits:open_digits", "scikit-learn's handwritten digits, no download", "digits"),
        "cifar10": Entry(f"{_HERE}.cifar:open_cifar10", "CIFAR-10 in its python format", "cifar10:PATH"),
        "cifar100": Entry(f"{_HERE}.cifar:open_cifar100", "CIFAR-100 in its python format", "cifar100:PATH"),
        "tiny-imagenet": Entry(
            f"{_HERE}.tiny_imagenet:open_tiny_imagenet", "the folder tiny-imagenet-200", "tiny-imagenet:PATH"
        ),
        "cub200": Entry(f"{_HERE}.cub200:open_cub200", "the folder CUB_200_2011", "cub200:PATH"),
        "imagefolder": Entry(
            f"{_HERE}.imagefolder:open_imagefolder",
            "PATH/train and PATH/val, valid, validation or test, one folder a class, as for ImageNet; others as in "
            "imagefolder:PATH:train=FOLDER,test=FOLDER",
            "imagefolder:PATH",
        ),
        "camvid": Entry(
            f"{_HERE}.camvid:open_camvid", "CamVid as SegNet has it: train/ and trainannot/", "camvid:PATH"
        ),
        "cityscapes": Entry(
            f"{_HERE}.cityscapes:open_cityscapes", "Cityscapes' folders leftImg8bit and gtFine", "cityscapes:PATH"
        ),
        "ade20k": Entry(f"{_HERE}.ade20k:open_ade20k", "the folder ADEChallengeData2016", "ade20k:PATH"),
        "voc": Entry(f"{_HERE}.voc:open_voc", "Pascal VOC's masks of classes, such as the folder VOC2012", "voc:PATH"),
        "segfolder": Entry(
            f"{_HERE}.segfolder:open_segfolder",
            "PATH/images/SPLIT with PATH/masks/SPLIT, classes.txt naming the ids in masks; the ignored one as in "
            "segfolder:PATH:ignore=255",
            "segfolder:PATH",
        ),
        "hf": Entry(
            f"{_HERE}.hf:open_hf", "a Hugging Face image dataset on disk: parquet files, or save_to_disk's", "hf:PATH"
        ),
        "wds": Entry(
            f"{_HERE}.wds:open_wds",
            "WebDataset shards, such as wds:data/train-{000..009}.tar or wds:s3://BUCKET/train-{000..009}.tar; with "
            "masks (.mask.png) as in wds:train.tar:classes=11,ignore=11",
            "wds:PATTERN",
        ),
    },
)
"""Functions that open a source. A function's own parameters say what it takes: `split`, `download`, `stream` and
`local_copy`, by these names, and before them perhaps one more, the text after the colon."""

_OPTIONS = ("split", "download", "stream", "local_copy")


def open_source(
    spec: str,
    *,
    split: str = "train",
    download: bool = False,
    stream: bool = False,
    local_copy: str | Path | None = None,
    subset: str | int | None = None,
) -> "gdkd_cache.data.source.FullSource":
    """Open the dataset that a spec names; the same strings as `--data` on the command line.

    Args:
        spec: one of `SOURCES.forms()`; ImageNet is an `imagefolder`. `package.module:callable`, or with another colon
            and a text for it, opens a source of your own.
        split: `train` or `test`; a source without splits, such as a `wds` pattern, is what it is.
        download: allow missing files to be fetched.
        stream: leave the images of a `wds` pattern in their shards until they are needed; shuffling then walks the
            shards. Remote shards come over as they are needed, to a temporary folder that holds few of them.
        local_copy: a folder that keeps the shards of a `wds` pattern of URLs, to be read there the next time, unless
            they changed in the store. It only grows, may serve several sources, and may be deleted.
        subset: only some rows: so many, those of the smallest key hash, or those of the keys in a text file.

    Returns:
        The source; its keys are unique and its order is fixed.

    Raises:
        UsageError: an unknown kind, a path where none belongs, or none where one does, or an option that the kind
            does not take.
        SourceError: the data is missing, damaged or laid out otherwise, or what was opened is no source.
        StoreError: an object store cannot be reached, or refuses.
    """
    from gdkd_cache.data import subset as taken  # here, as names alone cost nothing
    from gdkd_cache.data.source import settle

    name, text = SOURCES.split(spec)
    opener = SOURCES.load(name)
    parameters = _parameters(name, opener)
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    own = [one for one in parameters.values() if one.kind in positional and one.name not in _OPTIONS]
    if text is not None and not own:
        raise UsageError(f"data is {spec!r}; {name} takes no path after a colon")
    if not text and (text is not None or (own and own[0].default is Parameter.empty)):
        raise UsageError(f"data is {spec!r}; {name} needs a path after the colon")
    if split not in ("train", "test"):
        raise UsageError(f"split is {split!r}; it must be train or test")
    asked = {"download": download, "stream": stream, "local_copy": None if local_copy is None else Path(local_copy)}
    for option, value in asked.items():
        if value and option not in parameters:
            raise UsageError(f"{name} takes no --{option.replace('_', '-')}; leave it out")
    given = {option: value for option, value in {"split": split, **asked}.items() if option in parameters}
    arguments = [] if text is None else [text]
    try:
        signature(opener).bind(*arguments, **given)
    except TypeError as error:
        raise UsageError(f"data is {spec!r}; {name} opens no source: {error}") from None
    source = settle(opener(*arguments, **given))
    return source if subset is None else taken.subset(source, subset)


def takes(spec: str, option: str) -> bool:
    """Whether the kind of source that a spec names takes an option of `open_source`: with `split`, whether it has any.

    Raises:
        UsageError: an unknown kind.
    """
    name, _ = SOURCES.split(spec)
    return option in _parameters(name, SOURCES.load(name))


def _parameters(name: str, opener: Callable[..., Any]) -> Mapping[str, Parameter]:
    try:
        return signature(opener).parameters
    except ValueError:  # of some that are built in
        raise UsageError(f"data is {name}, which does not say what it takes; name a function of your own") from None
