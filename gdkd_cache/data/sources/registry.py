"""The datasets that a spec can name: one module each."""

from importlib import import_module
from pathlib import Path

from gdkd_cache.data.source import Source, check_source
from gdkd_cache.errors import UsageError
from gdkd_cache.registry import Entry, Registry

SOURCES = Registry(
    "data",
    {
        "digits": Entry("gdkd_cache.data.sources.digits:open_digits", "in scikit-learn, no download"),
        "wds": Entry("gdkd_cache.data.sources.wds:open_wds", "WebDataset shards", "wds:PATTERN"),
    },
)
KINDS = ("digits", "cifar100:PATH", "tiny-imagenet:PATH", "cub200:PATH", "imagefolder:PATH", "wds:PATTERN")


def open_source(
    spec: str,
    *,
    split: str = "train",
    download: bool = False,
    stream: bool = False,
    local_copy: str | Path | None = None,
) -> Source:
    """Open the dataset that a spec names; the same strings as `--data` on the command line.

    Args:
        spec: one of `KINDS`; ImageNet is an `imagefolder`.
        split: `train` or `test`; a `wds` pattern names its own files and has no splits.
        download: allow `cifar100` to fetch missing files.
        stream: leave the images of a `wds` pattern in their shards until they are needed; shuffling then walks the
            shards. Remote shards come over as they are needed, to a temporary folder that holds few of them.
        local_copy: a folder that keeps the shards of a `wds` pattern of URLs, to be read there the next time, unless
            they changed in the store. It only grows, may serve several sources, and may be deleted.

    Returns:
        The source; its keys are unique and its order is fixed.

    Raises:
        UsageError: an unknown kind, or a path where none belongs, or none where one does.
        SourceError: the data is missing, damaged or laid out otherwise.
        StoreError: an object store cannot be reached, or refuses.
    """
    kind, colon, path = spec.partition(":")
    if kind not in [form.partition(":")[0] for form in KINDS]:
        raise UsageError(f"data is {spec!r}; it must be one of {', '.join(KINDS)}")
    if bool(path) == (kind == "digits") or bool(colon) != bool(path):
        needs = "takes no path" if kind == "digits" else "needs a path after the colon"
        raise UsageError(f"data is {spec!r}; {kind} {needs}")
    if split not in ("train", "test"):
        raise UsageError(f"split is {split!r}; it must be train or test")
    if download and kind != "cifar100":
        raise UsageError(f"--download is for cifar100 only; {kind} is read where it lies")
    if stream and kind != "wds":
        raise UsageError(f"--stream is for wds only, not for {kind}")
    if local_copy is not None and not (kind == "wds" and "://" in path):
        raise UsageError("--local-copy is for wds shards in an object store; these are read where they lie")
    name = kind.replace("-", "_")
    opener = getattr(import_module(f"gdkd_cache.data.sources.{name}"), f"open_{name}")
    if kind == "digits":
        source = opener(split)
    elif kind == "cifar100":
        source = opener(Path(path), split, download)
    elif kind == "wds":
        source = opener(path, stream=stream, local_copy=None if local_copy is None else Path(local_copy))
    else:
        source = opener(Path(path), split)
    check_source(source)
    return source


def source_takes(spec: str, option: str) -> bool:
    return (spec.startswith("wds:")) == (option == "stream")
