"""`wds:PATTERN`: WebDataset shards indexed into memory: an image and a `.cls` label for each key."""

import glob
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from braceexpand import braceexpand
from webdataset.tariterators import group_by_keys, tar_file_expander

from gdkd_cache.data.source import ArraySource, EncodedSource, decode_image
from gdkd_cache.errors import SourceError, UsageError

_IMAGES = ("png", "jpg", "jpeg", "webp", "ppm")
_IN_MEMORY_PIXELS = 64 * 64


def open_wds(pattern: str) -> ArraySource | EncodedSource:
    """Read local shards; class names come from `classes.txt` beside the first shard, where there is one.

    Args:
        pattern: a path, with braces such as {000..003} or wildcards.

    Raises:
        UsageError: the pattern is a URL or a command.
        SourceError: no such shard, a sample without image or label, or a label that is no number.
    """
    shards = _shards(pattern)
    keys, files, labels = [], [], []
    for sample in _samples(shards):
        key = sample["__key__"]
        file = next((sample[name] for name in _IMAGES if name in sample), None)
        label = sample.get("cls", b"").strip()
        if file is None or not label.isdigit():
            members = ", ".join(sorted(name for name in sample if not name.startswith("__")))
            raise SourceError(
                f"wds: sample {key!r} has the members {members or 'none'}; "
                f"it needs an image ({', '.join(_IMAGES)}) and a number in .cls"
            )
        keys.append(key)
        files.append(file)
        labels.append(int(label))
    if not keys:
        raise SourceError(f"wds: {pattern} holds no samples")
    names = shards[0].parent / "classes.txt"
    classes = names.read_text().split("\n") if names.is_file() else [str(i) for i in range(max(labels) + 1)]
    about = {
        "name": "wds",
        "labels": np.asarray(labels, np.int64),
        "keys": keys,
        "classes": [name for name in classes if name],
    }
    first = decode_image(keys[0], files[0])
    if first.shape[0] * first.shape[1] > _IN_MEMORY_PIXELS:
        return EncodedSource(files=files, **about)
    images = [decode_image(key, file) for key, file in zip(keys, files, strict=True)]
    if any(image.shape != first.shape for image in images):
        return EncodedSource(files=files, **about)
    return ArraySource(images=np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)), **about)


def _samples(shards: list[Path]) -> Iterator[dict[str, Any]]:
    """Raw members of each sample, as bytes: webdataset's own `.decode()` would unpickle some of them."""
    for shard in shards:
        # Our own stream: webdataset's opener would run `pipe:` commands and leaves files open.
        with shard.open("rb") as stream:
            members = tar_file_expander([{"url": str(shard), "stream": stream}])
            try:
                yield from group_by_keys(members)
            except (tarfile.TarError, EOFError, ValueError) as error:
                reason = str(error.args[0] if error.args else error)
                raise SourceError(f"wds: {shard} is no intact tar file: {reason}; copy it again") from None


def _shards(pattern: str) -> list[Path]:
    paths: list[Path] = []
    for item in braceexpand(pattern):
        if item.startswith("pipe:") or "://" in item:
            raise UsageError(f"data is 'wds:{pattern}'; it must name local files")
        # Path.glob, which the linter prefers, takes no absolute patterns.
        matches = sorted(glob.glob(item)) if glob.has_magic(item) else [item]  # noqa: PTH207
        if not matches:
            raise SourceError(f"wds: no file matches {item}")
        paths += map(Path, matches)
    if missing := next((path for path in paths if not path.is_file()), None):
        raise SourceError(f"wds: {missing} does not exist")
    return paths
