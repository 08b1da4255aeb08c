"""A cache between its two forms: Zarr, and sidecars beside WebDataset shards."""

from pathlib import Path

import numpy as np

from gdkd_cache.cache.cache import open_cache
from gdkd_cache.cache.rows import match_rows
from gdkd_cache.data.shards.source import ShardSource
from gdkd_cache.data.source import Source
from gdkd_cache.errors import MismatchError, UsageError
from gdkd_cache.objects.folder import Folder
from gdkd_cache.objects.objects import open_objects
from gdkd_cache.progress import progress
from gdkd_cache.sharing.copy import CopyResult, copy
from gdkd_cache.store.sidecars.listing import SIDECAR_SUFFIX, SidecarSet
from gdkd_cache.store.sidecars.reader import SidecarReader
from gdkd_cache.store.sidecars.writer import write_sidecars


def to_sidecars(path: str | Path, out: str | Path, source: Source, *, digest: str | None = None) -> SidecarSet:
    """Write a cache as sidecars of its image shards, which are only read.

    Args:
        path: the cache, a folder or a URL.
        out: the folder of the sidecars; may be that of the image shards.
        source: the image shards that the cache was built from, in any order.
        digest: refuse a cache of another digest.

    Returns:
        What stands in `sidecars.json`.

    Raises:
        UsageError: `out` is a URL, or the source is no `ShardSource`.
        MismatchError: the shards hold other samples than the cache, two shards have one name, or the folder holds
            other sidecars.
        CacheError: the cache is damaged.
        OSError, StoreError: a place cannot be read or written.
    """
    if not isinstance(open_objects(out), Folder):
        raise UsageError(f"{out}: sidecars are written to a folder; copy its files to the store, sidecars.json last")
    if not isinstance(source, ShardSource):
        raise UsageError("sidecars are of image shards; give a source that was opened as wds:PATTERN, with stream")
    cache = open_cache(path, digest=digest)
    rows = match_rows(cache, source)
    if len(rows) < cache.num_rows:
        missing = cache.keys[int(np.setdiff1d(np.arange(cache.num_rows), rows)[0])]
        raise MismatchError(
            f"key {missing!r} of {cache.path} is in no shard ({cache.num_rows - len(rows)} of {cache.num_rows} "
            "are in none); give all shards that the cache was built from"
        )
    shards = dict(zip(map(_sidecar_name, source.shards), np.split(rows, source.shard_starts[1:-1]), strict=True))
    if len(shards) < len(source.shards):
        raise MismatchError("two shards have the same file name, so their sidecars would; rename one")
    shards = {name: own for name, own in shards.items() if len(own)}
    with progress("convert", cache.num_rows * cache.num_views, "views") as advance:
        return write_sidecars(cache, Path(out), shards, advance)


def _sidecar_name(shard: Path) -> str:
    return shard.name.removesuffix(".tar") + SIDECAR_SUFFIX


def from_sidecars(folder: str | Path, out: str | Path, *, digest: str | None = None) -> CopyResult:
    """Write the Zarr cache that sidecars were made from, to the byte, or go on where that was interrupted.

    Args:
        folder: of the sidecars, or its URL.
        out: a folder or URL, as the destination of `copy`.
        digest: refuse sidecars of another digest.

    Raises:
        UsageError: no sidecars there.
        CacheError: a sidecar is damaged, or its columns do not encode to what the manifest lists.
        MismatchError, OSError, StoreError: as `copy`.
    """
    if not isinstance(open_cache(folder), SidecarReader):
        raise UsageError(f"{folder} is a Zarr cache already; copy it with: gdkd-cache pull, or name shards with --data")
    return copy(folder, out, digest=digest)
