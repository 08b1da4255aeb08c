"""The datasets that a spec can name: one module each."""

from importlib import import_module
from pathlib import Path

from gdkd_cache.data.source import Source, check_source
from gdkd_cache.errors import UsageError

KINDS = ("digits", "cifar100:PATH", "tiny-imagenet:PATH", "cub200:PATH", "imagefolder:PATH", "wds:PATTERN")


def open_source(spec: str, *, split: str = "train", download: bool = False, stream: bool = False) -> Source:
    """Open the dataset that a spec names; the same strings as `--data` on the command line.

    Args:
        spec: one of `KINDS`; ImageNet is an `imagefolder`.
        split: `train` or `test`; a `wds` pattern names its own files and has no splits.
        download: allow `cifar100` to fetch missing files.
        stream: leave the images of a `wds` pattern in their shards until they are needed; shuffling then walks the
            shards.

    Returns:
        The source; its keys are unique and its order is fixed.

    Raises:
        UsageError: an unknown kind, or a path where none belongs, or none where one does.
        SourceError: the data is missing, damaged or laid out otherwise.
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
    name = kind.replace("-", "_")
    opener = getattr(import_module(f"gdkd_cache.data.sources.{name}"), f"open_{name}")
    if kind == "digits":
        source = opener(split)
    elif kind == "cifar100":
        source = opener(Path(path), split, download)
    elif kind == "wds":
        source = opener(path, stream=stream)
    else:
        source = opener(Path(path), split)
    check_source(source)
    return source
