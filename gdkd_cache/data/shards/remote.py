"""A source whose image shards lie in object stores: this process brings some to a local folder, workers read them."""

import os
import shutil
import tempfile
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from gdkd_cache.data.shards.fetch import FETCHES_AT_ONCE, fetch
from gdkd_cache.data.shards.source import ShardSource
from gdkd_cache.errors import StoreError
from gdkd_cache.objects.files import Version, open_files

Found = TypeVar("Found")


class RemoteShards:
    """Shards at URLs, each of which lies in a temporary folder as long as it is held.

    Lives in the process that made it; the folder goes with it, or at the end of the process.

    Attributes:
        paths: where each shard lies while it is held.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        """Connect to nothing yet.

        Raises:
            UsageError, StoreError: as `open_files`.
        """
        self._places = open_files(urls)
        folder = Path(tempfile.mkdtemp(prefix="gdkd-cache-"))
        self._remove = weakref.finalize(self, _remove, folder, os.getpid())
        self.paths = [folder / str(number) / name for number, (_, name) in enumerate(self._places)]
        self._known: dict[int, tuple[Version, str]] = {}
        self._pool = ThreadPoolExecutor(FETCHES_AT_ONCE, thread_name_prefix="fetch-shards")
        self._process, self._closed = os.getpid(), threading.Event()
        self._lock = threading.Lock()  # of the next three
        self._holds: Counter[int] = Counter()
        self._arrivals: dict[int, Future[None]] = {}
        self._present: set[int] = set()
        self._recent: int | None = None

    def close(self) -> None:
        """Remove the folder; nothing can be fetched any more."""
        self._closed.set()
        self._pool.shutdown(cancel_futures=True)
        self._remove()

    def scan(self, read: Callable[[Path, str], Found]) -> Iterator[Found]:
        """Bring every shard over once, a few at a time: what `read` makes of each path and URL, in order.

        Raises:
            SourceError, StoreError, OSError: as `fetch`.
        """

        def one(shard: int) -> Found:
            try:
                self._fetch(shard, lambda: not self._closed.is_set())
                files, name = self._places[shard]
                return read(self.paths[shard], f"{files.location}/{name}")
            finally:
                self.paths[shard].unlink(missing_ok=True)

        return self._pool.map(one, range(len(self.paths)))

    def _fetch(self, shard: int, wanted: Callable[[], bool]) -> bool:
        """Bring a shard over, which must be what it was the first time; False where it was not wanted any more."""
        version, sha256 = self._known.get(shard, (None, None))
        self.paths[shard].parent.mkdir(exist_ok=True)
        fetched = fetch(self._places[shard], self.paths[shard], version=version, sha256=sha256, wanted=wanted)
        if fetched is not None:
            self._known[shard] = fetched
        return fetched is not None

    def hold(self, shard: int) -> Future[None]:
        """Have a shard brought over, and kept until it was released as often; the future says when it is there.

        Raises:
            StoreError: in a forked process.
        """
        if os.getpid() != self._process:
            files, name = self._places[shard]
            raise StoreError(f"{files.location}/{name}: used in a forked process; use spawn or forkserver")
        with self._lock:
            self._holds[shard] += 1
            if shard not in self._arrivals:
                self._arrivals[shard] = self._pool.submit(self._bring, shard)
            return self._arrivals[shard]

    def release(self, shard: int) -> None:
        """Take back one `hold`."""
        with self._lock:
            self._holds[shard] -= 1
            if not self._holds[shard] and shard in self._present:
                self._drop(shard)

    def _bring(self, shard: int) -> None:
        try:
            while True:
                fetched = self._fetch(shard, lambda: self._holds[shard] > 0)
                with self._lock:
                    if not self._holds[shard]:
                        return self._drop(shard)
                    if fetched:  # else it is wanted again
                        return self._present.add(shard)
        except BaseException:
            with self._lock:
                self._drop(shard)
            raise

    def _drop(self, shard: int) -> None:
        del self._arrivals[shard]
        self._present.discard(shard)
        self.paths[shard].unlink(missing_ok=True)

    def want(self, shard: int) -> None:
        """Have a shard there now, outside a pass; it stays until another one is wanted.

        Raises:
            SourceError, StoreError, OSError: as `fetch`.
        """
        if shard in self._present:
            return
        arrival = self.hold(shard)
        if self._recent is not None:
            self.release(self._recent)
        self._recent = shard
        arrival.result()


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # not in a fork of it
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class RemoteShardSource(ShardSource):
    """Images in tar shards in object stores, of which few lie on disk at any time.

    In another process, where it arrives by pickle, it is a `ShardSource` of what lies there.

    Attributes:
        remote: the shards; `shards` are their local paths.
    """

    remote: RemoteShards = field()  # required here

    def decode(self, row: int, side: int | None) -> np.ndarray:
        """As `ShardSource.decode`; outside a pass the row's shard is fetched first.

        Raises:
            SourceError, StoreError, OSError: as `ShardSource.decode` and `fetch`.
        """
        self.remote.want(self.shard_of(row))
        return super().decode(row, side)

    def mask(self, row: int) -> np.ndarray:
        """As `ShardSource.mask`, and likewise."""
        self.remote.want(self.shard_of(row))
        return super().mask(row)

    def __reduce__(self) -> tuple[Any, ...]:
        # Of nothing in this module, so that workers do not load obstore.
        return object.__new__, (ShardSource,), {name: value for name, value in vars(self).items() if name != "remote"}
