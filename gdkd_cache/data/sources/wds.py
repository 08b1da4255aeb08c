"""`wds:PATTERN`: WebDataset shards, in memory or left where they lie: an image for each key, and a label or mask.

A label is a number in `.cls`, a mask a `.mask.png`. How many classes masks have, and which id is ignored there, says
`wds:PATTERN:classes=19,ignore=255`.
"""

import glob
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from braceexpand import braceexpand
from webdataset.tariterators import base_plus_ext

from gdkd_cache.data.masks import MOST_MASK_CLASSES, MaskFiles, id_table
from gdkd_cache.data.shards.archive import Archive, open_archive
from gdkd_cache.data.shards.source import ShardMasks, ShardSource
from gdkd_cache.data.source import EncodedSource
from gdkd_cache.data.sources.lists import read_list
from gdkd_cache.errors import SourceError, UsageError
from gdkd_cache.fields import check_fields, option, parse_fields
from gdkd_cache.limits import MOST_CLASSES
from gdkd_cache.schema import short
from gdkd_cache.store.sidecars.listing import SIDECAR_SUFFIX

_NONE = b"-1"
"""In .cls: nobody has labelled the sample."""
_IMAGES = ("png", "jpg", "jpeg", "webp", "ppm")
_LABEL_BYTES = 32
_CLASSES_BYTES = 2**26
_MOST_SHARDS = 2**17
_SCHEMES = ("s3", "gs", "az", "https", "http")  # the last for this machine only, which Bucket sees to
_META = re.compile(r"__[^/]*__($|/)")  # what webdataset itself skips

_SETTINGS = re.compile(r"(?P<pattern>.+):(?P<settings>(classes|ignore)=[^:/]*)")
_MASK = "mask.png"

_Sample = tuple[str, int | None, Any, Any]
"""Key, label (None where there is a mask), and image and mask: their bytes, or their offsets and sizes."""


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What masks hold."""

    classes: int | None = option(
        None, "How many classes masks have.", least=2, most=MOST_MASK_CLASSES, unset="as many as classes.txt has lines"
    )
    ignore: int | None = option(None, "The id of pixels that count nowhere.", least=0, most=2**16 - 1, unset="255")

    def __post_init__(self) -> None:
        check_fields(self, "wds")

    def names(self, listed: list[str] | None, pattern: str) -> list[str]:
        """The names of the classes of masks."""
        if listed is None and self.classes is None:
            raise SourceError(
                f"wds: {pattern} has masks, and no classes.txt beside the first shard names their classes; say how "
                "many there are, as in wds:PATTERN:classes=19,ignore=255"
            )
        names = listed or [str(number) for number in range(self.classes or 0)]
        if self.classes not in (None, len(names)):
            raise SourceError(f"wds: classes.txt of {pattern} names {len(names)} classes, and classes={self.classes}")
        return names


def open_wds(pattern: str, *, stream: bool = False, local_copy: Path | None = None) -> EncodedSource | ShardSource:
    """Read shards; class names come from `classes.txt` beside the first shard, where there is one.

    Args:
        pattern: a path, with braces such as {000..003} or wildcards; wildcards leave sidecars out. Or the URL of an
            object store or web server, with braces. Then perhaps `:classes=N,ignore=ID`, of masks.
        stream: leave the images where they lie, and keep only their places.
        local_copy: a folder that keeps remote shards; see `keep_shards`.

    Raises:
        UsageError: the pattern's braces are wrong or name too many files, or it is a command, or a URL that names no
            plain file or of another kind; or `local_copy` is given for local shards.
        SourceError: no such shard, one that is no whole tar file, a sample without image, or label or mask, or a wrong
            label; or nothing says how many classes masks have.
        StoreError: an object store cannot be reached, or refuses.
        OSError: remote shards cannot be written to a local folder.
    """
    stated = _SETTINGS.fullmatch(pattern)
    pattern = stated["pattern"] if stated else pattern
    settings = parse_fields(_Settings, "wds", stated["settings"] if stated else None)
    items, read = _expanded(pattern), partial(_samples, stream=stream)
    if not any("://" in item for item in items):
        if local_copy is not None:
            raise UsageError("--local-copy is for wds shards in an object store; these are read where they lie")
        shards = _local_shards(pattern, items)
        names = shards[0].parent / "classes.txt"
        text = read_list(names, _CLASSES_BYTES) if names.exists() else None
        return _source(pattern, shards, map(read, shards, map(str, shards)), text, stream, settings)
    if any(item.partition("://")[0] not in _SCHEMES for item in items):
        raise UsageError(f"wds shards must all be local files, or all URLs: {', '.join(_SCHEMES)}, without wildcards")
    # Here, so that workers and users of local shards never load obstore.
    from gdkd_cache.data.shards.fetch import keep_shards, read_text
    from gdkd_cache.data.shards.remote import RemoteShards, RemoteShardSource

    text = read_text(items[0].rpartition("/")[0] + "/classes.txt", _CLASSES_BYTES)
    if local_copy is not None:
        shards = keep_shards(items, local_copy)
        return _source(pattern, shards, map(read, shards, items), text, stream, settings)
    remote = RemoteShards(items)
    try:
        source = _source(pattern, remote.paths, remote.scan(read), text, stream, settings)
    except BaseException:
        remote.close()
        raise
    if not isinstance(source, ShardSource):
        remote.close()
        return source
    return RemoteShardSource(**{**vars(source), "remote": remote})


def _expanded(pattern: str) -> list[str]:
    """The names that a pattern with braces stands for."""
    try:
        ranges = re.findall(r"(-?\d+)\.\.(-?\d+)", pattern)
        few = all(abs(int(last) - int(first)) < _MOST_SHARDS for first, last in ranges)  # the library makes each whole
        items = list(islice(braceexpand(pattern), _MOST_SHARDS + 1)) if few else []
    except (ValueError, RecursionError):
        raise UsageError(
            f"data is {short(f'wds:{pattern}')}; its braces must be balanced, as in {{000..127}}"
        ) from None
    if not 0 < len(items) <= _MOST_SHARDS:
        raise UsageError(f"data is {short(f'wds:{pattern}')}; it must name 1 to {_MOST_SHARDS} shards")
    return items


def _source(
    pattern: str,
    shards: list[Path],
    samples: Iterable[list[_Sample]],
    classes_text: str | None,
    stream: bool,
    settings: _Settings,
) -> EncodedSource | ShardSource:
    """A source of the samples of each shard."""
    keys, labels, images, masks, starts = [], [], [], [], [0]
    for own in samples:
        for key, label, image, mask in own:
            keys.append(key)
            labels.append(label)
            images.append(image)
            masks.append(mask)
        starts.append(len(keys))
    if not keys:
        raise SourceError(f"wds: {pattern} holds no samples")
    if classes_text is not None and classes_text.count("\n") > MOST_CLASSES:
        raise SourceError(f"wds: classes.txt of {pattern} has more than {MOST_CLASSES} lines; give one class a line")
    listed = None if classes_text is None else [name for name in classes_text.split("\n") if name]
    about: dict[str, Any] = {"name": "wds", "keys": keys}
    numbered = [label for label in labels if label is not None]
    if len(numbered) == len(keys):
        if settings != _Settings():
            raise UsageError(f"wds: {pattern} has labels and no masks; classes and ignore are of masks, leave them out")
        about["labels"] = np.asarray(labels, np.int64)
        about["classes"] = [str(i) for i in range(max(numbered) + 1)] if listed is None else listed
    elif numbered:
        raise SourceError(
            f"wds: sample {keys[labels.index(numbered[0])]!r} has a number in .cls, "
            f"{keys[labels.index(None)]!r} a mask alone; all samples need the one or the other"
        )
    else:
        about["labels"], about["classes"] = np.zeros(len(keys), np.int64), settings.names(listed, pattern)
        ids = id_table(range(len(about["classes"])), [255 if settings.ignore is None else settings.ignore])
        if stream:
            (offsets, sizes), numbers = np.array(masks, np.int64).T, np.repeat(np.arange(len(shards)), np.diff(starts))
            places = {"shards": shards, "numbers": numbers, "offsets": offsets, "sizes": sizes}
            about["masks"] = ShardMasks(keys=keys, ids=ids, **places)
        else:
            about["masks"] = MaskFiles(keys=keys, ids=ids, files=masks)
    if stream:
        offsets, sizes = np.array(images, np.int64).T
        return ShardSource(shards=shards, shard_starts=np.array(starts), offsets=offsets, sizes=sizes, **about)
    return EncodedSource(files=images, **about)


def _samples(shard: Path, place: str, *, stream: bool) -> list[_Sample]:
    """Each sample of a shard.

    webdataset's own opener would run `pipe:` commands, and its `.decode()` unpickle.
    """
    samples = []
    with open_archive(shard, place, plain=stream) as archive:
        for key, members in groupby(_members(archive, stream=stream), itemgetter(0)):
            sample: dict[str, Any] = {}
            for _, kind, data in members:
                if kind in sample:
                    raise SourceError(f"wds: {place} holds {key!r} with {short(kind)} twice; a sample has one of each")
                sample[kind] = data
            image = next((sample[name] for name in _IMAGES if name in sample), None)
            label: bytes = sample.get("cls") or b""
            if image is None or not (label.isdigit() or label == _NONE or ("cls" not in sample and _MASK in sample)):
                raise SourceError(
                    f"wds: sample {key!r} has the members {', '.join(map(short, sorted(sample))) or 'none'}; "
                    f"it needs an image ({', '.join(_IMAGES)}) and a number in .cls (-1 for no label), or a .{_MASK}"
                )
            if not label:
                samples.append((key, None, image, sample[_MASK]))
                continue
            if int(label) >= MOST_CLASSES:
                raise SourceError(f"wds: sample {key!r} has label {int(label)}; class ids are below {MOST_CLASSES}")
            samples.append((key, int(label), image, None))
    return samples


def _members(archive: Archive, *, stream: bool) -> Iterator[tuple[str, str, Any]]:
    """Key, kind and content of each; they are read as they are passed, as a compressed shard is not gone back in."""
    for member in archive.members():
        key, kind = (None, None) if _META.match(member.name) else base_plus_ext(member.name)
        if key is not None and kind is not None:
            kind, data = kind.lower(), None
            if kind == "cls" and member.size <= _LABEL_BYTES:
                data = archive.read(member).strip()
            elif kind in (*_IMAGES, _MASK):
                data = archive.place(member) if stream else archive.read(member)
            yield key, kind, data


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
    if missing := next((path for path in paths if not path.exists()), None):
        raise SourceError(f"wds: {missing} does not exist")
    return paths
