"""Streams of rendered views, from worker processes or from this one."""

import itertools
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from gdkd_cache.data.shards.ahead import ShardsAhead
from gdkd_cache.data.source import FullSource
from gdkd_cache.data.views import ViewBatch, ViewRenderer, ViewRequest
from gdkd_cache.errors import GdkdCacheError, UsageError
from gdkd_cache.ranks import this_rank

_BLOCK_ROWS = 1024
_BLOCK_BYTES = 2**24


class _Requests(Sampler[ViewRequest]):
    """The requests of the current pass, in the main process: workers that persist see each pass's own."""

    def __init__(self) -> None:
        self.current: Iterable[ViewRequest] = ()

    def __iter__(self) -> Iterator[ViewRequest]:
        return iter(self.current)


class ViewLoader:
    """Streams rendered batches in the order of the requests, from worker processes or this one.

    Args:
        renderer: what renders one request.
        num_workers: worker processes; 0 renders here, which is fastest for images that lie in memory.
        pin_memory: page-locked batches, for copies to a GPU.
    """

    def __init__(self, renderer: ViewRenderer, *, num_workers: int = 0, pin_memory: bool = False) -> None:
        self._requests = _Requests()
        self._pass = 0
        self._source = renderer.source
        # Images in memory are rendered in blocks larger than a batch: a policy's operations come in larger groups.
        self._block = 1
        if renderer.in_memory and self._source.images is not None and num_workers == 0:
            self._block = min(_BLOCK_ROWS, _BLOCK_BYTES // self._source.images[0].nbytes + 1)
        # Not fork: this process may hold threads (Zarr's, the writer's) whose locks a child would inherit.
        context = multiprocessing.get_context("forkserver") if num_workers else None
        if context is not None:
            context.set_forkserver_preload([__name__])  # torch is imported once, not once a worker
        self._loader = DataLoader(
            _ErrorsAsValues(renderer),
            batch_size=None,
            sampler=self._requests,
            collate_fn=_as_is,
            num_workers=num_workers,
            multiprocessing_context=context,
            worker_init_fn=end_with_parent,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # its own, so that the global generator is left alone
        )

    def stream(self, requests: Iterable[ViewRequest]) -> Iterator[ViewBatch]:
        """Render the requests in order: one batch for each request and each of its views.

        Requests are drawn as they are rendered, a few ahead.

        Raises:
            SourceError: an image cannot be read or rendered; it names the key.
            StoreError, OSError: it cannot be fetched.
            UsageError: a newer stream took the worker processes.
            GdkdCacheError: worker processes ended; it says why they may have.
        """
        drawn, blocks = itertools.tee(_blocks(requests, self._block))
        asked = (block for block, _ in drawn)
        starts, remote = self._source.shard_starts, self._source.remote
        if starts is None or remote is None:
            self._requests.current = asked
            yield from self._rendered(blocks, lambda: None)
        else:
            with closing(ShardsAhead(asked, starts, remote)) as ahead:
                self._requests.current = ahead
                yield from self._rendered(blocks, ahead.received)

    def _rendered(
        self, blocks: Iterable[tuple[ViewRequest, list[int]]], received: Callable[[], None]
    ) -> Iterator[ViewBatch]:
        for batches, (_, sizes) in zip(self._results(), blocks, strict=True):
            received()
            if isinstance(batches, GdkdCacheError):
                raise batches
            for batch in batches:
                yield from batch.split(sizes) if len(sizes) > 1 else [batch]

    def _results(self) -> Iterator[list[ViewBatch] | GdkdCacheError]:
        """One pass over the current requests. Workers serve the newest: an older one would be given its batches."""
        self._pass += 1
        number = self._pass
        if not self._loader.num_workers:
            yield from self._loader
            return
        with _workers_begin_afresh():
            for batches in self._loader:
                yield batches
                if number != self._pass:
                    raise UsageError(
                        "a newer pass over the same worker processes has begun, and they serve one at a time; end one "
                        "before the other begins, or load with num_workers=0"
                    )


def _blocks(requests: Iterable[ViewRequest], least: int) -> Iterator[tuple[ViewRequest, list[int]]]:
    """Join requests of one view until they have `least` rows: the joined request and the rows of its parts."""
    parts: list[ViewRequest] = []
    for request in requests:
        alike = parts and len(request.views) == 1 and request.views == parts[0].views
        if parts and not (alike and sum(len(part.rows) for part in parts) < least):
            yield _joined(parts)
            parts = []
        parts.append(request)
    if parts:
        yield _joined(parts)


def _joined(parts: list[ViewRequest]) -> tuple[ViewRequest, list[int]]:
    rows = np.concatenate([part.rows for part in parts])
    return ViewRequest(parts[0].views, rows), [len(part.rows) for part in parts]


class _ErrorsAsValues(Dataset[list[ViewBatch] | GdkdCacheError]):
    """Carries our errors out of workers as they are: the DataLoader would wrap them in a traceback."""

    def __init__(self, renderer: ViewRenderer) -> None:
        self._renderer = renderer

    def __getitem__(self, request: ViewRequest) -> list[ViewBatch] | GdkdCacheError:
        try:
            return self._renderer[request]
        except GdkdCacheError as error:
            return error


def end_with_parent(worker: int = 0) -> None:
    """Have a worker process end when the one that started it does, however that ends; called in the worker.

    The DataLoader's own watch is of what forked the worker: the fork server, which lives as long as its workers do.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()


@contextmanager
def _workers_begin_afresh() -> Iterator[None]:
    """Say in a line why workers cannot begin: each imports the script that this process runs, if it runs one.

    Raises:
        UsageError: that script is no file.
        GdkdCacheError: workers ended, as they do where the script does its work at once and so begins again in each.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(1)  # this is such a worker, in the midst of the script; the process that waits for it says so
    script = sys.modules["__main__"]
    path = getattr(script, "__file__", None)
    if getattr(script, "__spec__", None) is None and path is not None and not Path(path).exists():
        raise UsageError(
            f"worker processes import the script that is run, and {path} is no file; run it from a file, or load with "
            "num_workers=0"
        )
    try:
        yield
    except (RuntimeError, BrokenPipeError) as error:
        if isinstance(error, RuntimeError) and "exited unexpectedly" not in str(error):
            raise
        raise GdkdCacheError(
            "worker processes ended unexpectedly: either this script begins its work outside of "
            "`if __name__ == '__main__':`, which workers need as they import it, or something (such as full memory) "
            "killed them; num_workers=0 does without them"
        ) from None


def _as_is(batch: Any) -> Any:
    """The collation of a batch that is finished already."""
    return batch


def default_num_workers(source: FullSource) -> int:
    """Images in memory are rendered in whole batches by this process, which is faster than any worker."""
    cores = max((os.cpu_count() or 1) // this_rank().local_world_size, 1)
    return 0 if source.images is not None else min(cores, 8)
