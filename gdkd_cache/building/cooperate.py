"""Build one cache together with whoever else builds it: agree on the codec, share the shards.

Nobody talks to anybody: all that processes know of each other are the objects in the cache's place, so that they may
be ranks, other machines or another run, and come and go.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from gdkd_cache.building.compute import Unit, Work, grouped
from gdkd_cache.ranks import this_rank
from gdkd_cache.store.claims import Claims
from gdkd_cache.store.layout import PROBE
from gdkd_cache.store.place import Begun, Complete, Empty, Found, Place
from gdkd_cache.store.writer import CacheWriter

_LOG = logging.getLogger(__name__)
POLL_SECONDS = 1.0
_LOOK_SECONDS = 5.0


def begin_together(place: Place, found: Found, claims: Claims, fit: Callable[[], Begun]) -> CacheWriter | Complete:
    """Begin with the codec that the build began with; where there is none, one process fits it.

    Args:
        place: where to.
        found: what it held before.
        claims: of this process.
        fit: gives what a build begins with.

    Returns:
        What commits shards, or the cache that others have finished meanwhile.
    """
    while isinstance(found, Empty):
        claimed = claims.take("codec")
        if not claimed:
            time.sleep(POLL_SECONDS)
        found = place.look()  # also with the claim in hand: whoever had claimed it before may have begun
        if claimed and isinstance(found, Empty):
            return place.begin(fit())
    return found if isinstance(found, Complete) else place.begin(found)


class Share:
    """This process's share of the shards that a build has left.

    Attributes:
        left: rows of the shards without a ledger record, by (view, shard), as of the last `look`.
        rows_computed: views that this process committed.
    """

    def __init__(
        self, writer: CacheWriter, claims: Claims, left: Sequence[Unit], advance: Callable[[int], None]
    ) -> None:
        """Take nothing yet.

        Args:
            writer: commits shards.
            claims: of this process.
            left: shards without a ledger record.
            advance: called with the rows of what other processes commit meanwhile.
        """
        self._writer, self._claims, self._advance = writer, claims, advance
        self.left = {(view, shard): rows for view, shard, rows in left}
        self.rows_computed = 0
        self._own: set[tuple[int, int]] = set()
        self._taken: set[tuple[int, int]] = set()
        self._looked = time.monotonic()
        self._waited = False

    def take(self, *, in_memory: bool) -> Iterator[Work]:
        """What nobody else does, each claimed when it is asked for; `in_memory` as for `grouped`."""
        units = [(view, shard, rows) for (view, shard), rows in self.left.items()]
        rank, references = this_rank(), self._writer.codec.num_references
        groups = grouped(units, in_memory=in_memory, num_ranks=rank.world_size, references=references)
        first = len(groups) * rank.rank // rank.world_size  # each rank begins elsewhere
        for group in groups[first:] + groups[:first]:
            if views := tuple(view for view in group.views if self._take(view, group.shard)):
                yield replace(group, views=views)

    def _predicted(self, view: int, shard: int) -> bool:
        """Whether what predicts a shard is committed, or will be when this process comes to it."""
        first = self._writer.first_view
        needed = range(first, max(first, min(view, self._writer.codec.num_references)))
        return all((one, shard) in self._taken or (one, shard) not in self.left for one in needed)

    def _take(self, view: int, shard: int) -> bool:
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self.look()
        # Asked again with the claim in hand: an owner that left may have committed the shard before.
        taken = (
            (view, shard) in self.left
            and self._predicted(view, shard)
            and self._writer.wanted(view, shard)
            and self._claims.take(f"{view}/{shard}")
            and self._writer.wanted(view, shard)
        )
        self._taken |= {(view, shard)} if taken else set()
        return taken

    def look(self) -> None:
        """Strike off what is committed, and count what others did of it."""
        for unit in self.left.keys() & self._writer.recorded():
            rows = self.left.pop(unit)
            self._advance(0 if unit in self._own else len(rows))
        self._looked = time.monotonic()

    def commit(self, view: int, shard: int, columns: dict[str, np.ndarray]) -> None:
        """Commit a shard, unless this process was taken for dead.

        Raises:
            StoreError: it was.
            MismatchError: the place was given to another build.
        """
        if self._writer.published():
            return
        self._claims.check()
        self._own.add((view, shard))
        self._writer.commit(view, shard, columns)
        self.rows_computed += len(columns[PROBE])

    def wait(self) -> None:
        """Leave the others time to go on."""
        if not self._waited:
            self._waited = True
            _LOG.info("waiting for the other processes that build this cache; %d shards are theirs", len(self.left))
        time.sleep(POLL_SECONDS)
