"""The shards of one pass, a few ahead of the requests that need them."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future

import numpy as np

from gdkd_cache.data.order import BUFFER_ROWS
from gdkd_cache.data.source import Shards
from gdkd_cache.data.views import ViewRequest

AHEAD_SHARDS = 4
"""At most so many shards are there before a request that was given out needs them."""


class ShardsAhead:
    """The requests of one pass, each given out once its shards are there: iterate in the process that may fetch.

    Requests are drawn so far ahead that `BUFFER_ROWS` rows are known. A shard goes when all of these that need it were
    received; so there are those of the requests that are out, those which shuffling has begun and not finished, and
    `AHEAD_SHARDS`.

    Args:
        requests: drawn as they are needed.
        shard_starts: int64 [shard + 1], the first row of each shard, then the number of rows.
        shards: what brings them over, keeps them and lets them go.
    """

    def __init__(
        self,
        requests: Iterable[ViewRequest],
        shard_starts: np.ndarray,
        shards: Shards,
    ) -> None:
        self._requests, self._starts, self._shards = iter(requests), shard_starts, shards
        self._drawn: deque[tuple[ViewRequest, list[int]]] = deque()
        self._drawn_rows = 0
        self._out: deque[list[int]] = deque()
        self._needs: Counter[int] = Counter()  # drawn requests that were not received, by shard
        self._coming: deque[int] = deque()  # in the order in which requests need them; not held yet
        self._held: dict[int, Future[None]] = {}
        self._early: set[int] = set()  # held, and needed by no request that was given out

    def __iter__(self) -> Iterator[ViewRequest]:
        while self._draw():
            request, shards = self._drawn.popleft()
            self._drawn_rows -= len(request.rows)
            self._out.append(shards)
            self._early.difference_update(shards)
            while self._coming and (self._coming[0] in shards or len(self._early) < AHEAD_SHARDS):
                shard = self._coming.popleft()
                self._held[shard] = self._shards.hold(shard)
                if shard not in shards:
                    self._early.add(shard)
            for shard in shards:
                self._held[shard].result()
            yield request

    def _draw(self) -> bool:
        while self._drawn_rows < BUFFER_ROWS and (request := next(self._requests, None)) is not None:
            shards = np.unique(np.searchsorted(self._starts, request.rows, side="right") - 1).tolist()
            self._coming.extend(shard for shard in shards if not self._needs[shard])
            self._needs.update(shards)
            self._drawn.append((request, shards))
            self._drawn_rows += len(request.rows)
        return bool(self._drawn)

    def received(self) -> None:
        """The first request that is out was answered: shards that no drawn one needs may go."""
        for shard in self._out.popleft():
            self._needs[shard] -= 1
            if not self._needs[shard]:
                del self._held[shard]
                self._shards.release(shard)

    def close(self) -> None:
        """Let all shards go: no answer is waited for any more."""
        for shard in self._held:
            self._shards.release(shard)
        self._held.clear()
