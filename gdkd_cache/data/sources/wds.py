"""`wds:PATTERN`: WebDataset shards, in memory or left where they lie: an image and a `.cls` label for each key."""

import glob
import re
import tarfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from braceexpand import braceexpand
from webdataset.tariterators import group_by_keys

from gdkd_cache.data.shards.source import ShardSource
from gdkd_cache.data.source import ArraySource, EncodedSource, decode_image
from gdkd_cache.errors import SourceError, UsageError
from gdkd_cache.store.sidecars.listing import SIDECAR_SUFFIX

_IMAGES = ("png", "jpg", "jpeg", "webp", "ppm")
_IN_MEMORY_PIXELS = 64 * 64
_LABEL_BYTES = 32
_CLASSES_BYTES = 2**26
_SCHEMES = ("s3", "gs", "az", "https", "http")  # the last for this machine only, which Bucket sees to
_META = re.compile(r"__[^/]*__($|/)")  # what webdataset itself skips

_Sample = tuple[str, int, Any]


def open_wds(
    pattern: str, *, stream: bool = False, local_copy: Path | None = None
) -> ArraySource | EncodedSource | ShardSource:
    """Read shards; class names come from `classes.txt` beside the first shard, where there is one.

    Args:
        pattern: a path, with braces such as {000..003} or wildcards; wildcards leave sidecars out. Or the URL of an
            object store or web server, with braces.
        stream: leave the images where they lie, and keep only their places.
        local_copy: a folder that keeps remote shards; see `keep_shards`.

    Raises:
        UsageError: the pattern is a command, or a URL that names no plain file or of another kind; or `local_copy`
            is given for local shards.
        SourceError: no such shard, a sample without image or label, or a label that is no number.
        StoreError: an object store cannot be reached, or refuses.
        OSError: remote shards cannot be written to a local folder.
    """
    items, read = list(braceexpand(pattern)), partial(_samples, stream=stream)
    if not any("://" in item for item in items):
        if local_copy is not None:
            raise UsageError("--local-copy is for wds shards in an object store; these are read where they lie")
        shards = _local_shards(pattern, items)
        names = shards[0].parent / "classes.txt"
        text = names.read_text() if names.is_file() else None
        return _source(pattern, shards, map(read, shards, map(str, shards)), text, stream)
    if any(item.partition("://")[0] not in _SCHEMES for item in items):
        raise UsageError(f"wds shards must all be local files, or all URLs: {', '.join(_SCHEMES)}, without wildcards")
    # Here, so that workers and users of local shards never load obstore.
    from gdkd_cache.data.shards.fetch import keep_shards, read_text
    from gdkd_cache.data.shards.remote import RemoteShards, RemoteShardSource

    text = read_text(items[0].rpartition("/")[0] + "/classes.txt", _CLASSES_BYTES)
    if local_copy is not None:
        shards = keep_shards(items, local_copy)
        return _source(pattern, shards, map(read, shards, items), text, stream)
    remote = RemoteShards(items)
    try:
        source = _source(pattern, remote.paths, remote.scan(read), text, stream)
    except BaseException:
        remote.close()
        raise
    if not isinstance(source, ShardSource):
        remote.close()
        return source
    return RemoteShardSource(**{**vars(source), "remote": remote})


def _source(
    pattern: str, shards: list[Path], samples: Iterable[list[_Sample]], classes_text: str | None, stream: bool
) -> ArraySource | EncodedSource | ShardSource:
    """A source of the samples of each shard."""
    keys, labels, images, starts = [], [], [], [0]
    for own in samples:
        for key, label, image in own:
            keys.append(key)
            labels.append(label)
            images.append(image)
        starts.append(len(keys))
    if not keys:
        raise SourceError(f"wds: {pattern} holds no samples")
    classes = [str(i) for i in range(max(labels) + 1)] if classes_text is None else classes_text.split("\n")
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


def _samples(shard: Path, place: str, *, stream: bool) -> list[_Sample]:
    """Key, label and image of each sample: the image's bytes, or with `stream` their offset and size.

    webdataset groups the members, but its own opener would run `pipe:` commands, and its `.decode()` unpickle.
    """
    samples = []
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
                samples.append((key, int(label), (image.offset_data, image.size) if stream else _read(tar, image)))
    except (tarfile.TarError, EOFError, ValueError) as error:
        reason = str(error.args[0] if error.args else error)
        plain = " or is compressed" if stream else ""
        raise SourceError(f"wds: {place} is no intact tar file{plain}: {reason}; copy it again") from None
    return samples


def _members(tar: tarfile.TarFile, shard: Path) -> Iterator[dict[str, Any]]:
    for member in tar:
        if member.isreg() and not member.issparse() and not _META.match(member.name):
            yield {"fname": member.name, "data": member, "__url__": str(shard)}


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # it is a regular member
    return file.read()


def _local_shards(pattern: str, items: list[str]) -> list[Path]:
    paths: list[Path] = []
    for item in items:
        if item.startswith("pipe:"):
            raise UsageError(f"data is 'wds:{pattern}'; it must name local files or URLs")
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
