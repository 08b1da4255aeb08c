"""`wds:PATTERN`: WebDataset shards, in memory or left on disk: an image and a `.cls` label for each key."""

import glob
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from braceexpand import braceexpand
from webdataset.tariterators import group_by_keys

from gdkd_cache.data.shards import ShardSource
from gdkd_cache.data.source import ArraySource, EncodedSource, decode_image
from gdkd_cache.errors import SourceError, UsageError
from gdkd_cache.store import SIDECAR_SUFFIX

_IMAGES = ("png", "jpg", "jpeg", "webp", "ppm")
_IN_MEMORY_PIXELS = 64 * 64
_LABEL_BYTES = 32
_META = re.compile(r"__[^/]*__($|/)")  # what webdataset itself skips


def open_wds(pattern: str, *, stream: bool = False) -> ArraySource | EncodedSource | ShardSource:
    """Read local shards; class names come from `classes.txt` beside the first shard, where there is one.

    Args:
        pattern: a path, with braces such as {000..003} or wildcards; wildcards leave sidecars out.
        stream: leave the images on disk, and keep only where they lie.

    Raises:
        UsageError: the pattern is a URL or a command.
        SourceError: no such shard, a sample without image or label, or a label that is no number.
    """
    shards = _shards(pattern)
    keys, labels, images, starts = [], [], [], [0]
    for shard in shards:
        for key, label, image in _samples(shard, stream):
            keys.append(key)
            labels.append(label)
            images.append(image)
        starts.append(len(keys))
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
    if stream:
        offsets, sizes = np.array(images, np.int64).T
        return ShardSource(shards=shards, shard_starts=np.array(starts), offsets=offsets, sizes=sizes, **about)
    first = decode_image(keys[0], images[0])
    if first.shape[0] * first.shape[1] > _IN_MEMORY_PIXELS:
        return EncodedSource(files=images, **about)
    decoded = [decode_image(key, image) for key, image in zip(keys, images, strict=True)]
    if any(image.shape != first.shape for image in decoded):
        return EncodedSource(files=images, **about)
    return ArraySource(images=np.ascontiguousarray(np.stack(decoded).transpose(0, 3, 1, 2)), **about)


def _samples(shard: Path, stream: bool) -> Iterator[tuple[str, int, Any]]:
    """Key, label and image of each sample: the image's bytes, or with `stream` their offset and size.

    webdataset groups the members, but its own opener would run `pipe:` commands, and its `.decode()` unpickle.
    """
    try:
        # Offsets are those of a plain tar file; what is read into memory may be compressed.
        with tarfile.open(shard, "r:" if stream else "r:*") as tar:
            for sample in group_by_keys(_members(tar, shard)):
                key: str = sample["__key__"]
                image = next((sample[name] for name in _IMAGES if name in sample), None)
                label = b""
                if "cls" in sample and sample["cls"].size <= _LABEL_BYTES:
                    label = _read(tar, sample["cls"]).strip()
                if image is None or not label.isdigit():
                    members = ", ".join(sorted(name for name in sample if not name.startswith("__")))
                    raise SourceError(
                        f"wds: sample {key!r} has the members {members or 'none'}; "
                        f"it needs an image ({', '.join(_IMAGES)}) and a number in .cls"
                    )
                yield key, int(label), (image.offset_data, image.size) if stream else _read(tar, image)
    except (tarfile.TarError, EOFError, ValueError) as error:
        reason = str(error.args[0] if error.args else error)
        plain = " or is compressed" if stream else ""
        raise SourceError(f"wds: {shard} is no intact tar file{plain}: {reason}; copy it again") from None


def _members(tar: tarfile.TarFile, shard: Path) -> Iterator[dict[str, Any]]:
    for member in tar:
        if member.isreg() and not member.issparse() and not _META.match(member.name):
            yield {"fname": member.name, "data": member, "__url__": str(shard)}


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # it is a regular member
    return file.read()


def _shards(pattern: str) -> list[Path]:
    paths: list[Path] = []
    for item in braceexpand(pattern):
        if item.startswith("pipe:") or "://" in item:
            raise UsageError(f"data is 'wds:{pattern}'; it must name local files")
        # Path.glob, which the linter prefers, takes no absolute patterns.
        matches = [item]
        if glob.has_magic(item):
            found = glob.glob(item)  # noqa: PTH207
            matches = sorted(path for path in found if not path.endswith(SIDECAR_SUFFIX))
        if not matches:
            raise SourceError(f"wds: no file matches {item}")
        paths += map(Path, matches)
    if missing := next((path for path in paths if not path.is_file()), None):
        raise SourceError(f"wds: {missing} does not exist")
    return paths
