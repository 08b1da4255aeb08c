"""Build one cache together with whoever else builds it: agree on the codec, share the shards, publish once.

Nobody talks to anybody: all that processes know of each other are the objects in the cache's place, so that they may
be ranks, other machines or another run, and come and go.
"""

import logging
import time
from collections.abc import Callable, Sequence

from gdkd_cache.codec.columns import Codec
from gdkd_cache.store.claims import Claims
from gdkd_cache.store.facts import Fidelity
from gdkd_cache.store.manifest import Manifest
from gdkd_cache.store.writer import CacheWriter

_LOG = logging.getLogger(__name__)
POLL_SECONDS = 1.0
_LOOK_SECONDS = 5.0

Unit = tuple[int, int, range]
"""View, shard and the shard's rows."""

Fitted = tuple[Codec, Fidelity]
"""A codec, and what it was measured to lose."""


def agree_on_codec(writer: CacheWriter, claims: Claims, fit: Callable[[], Fitted]) -> Fitted:
    """The codec that this build began with; one process fits it, and begins the build, where there is none."""
    while writer.fitted is None:
        if claims.take("codec"):
            writer.look()  # whoever had claimed it before may have done it
            fitted = writer.fitted or fit()
            writer.begin(*fitted)
            return fitted
        time.sleep(POLL_SECONDS)
        writer.look()
    writer.begin(*writer.fitted)
    return writer.fitted


def share_shards(
    writer: CacheWriter,
    claims: Claims,
    compute: Callable[[Sequence[Unit], Callable[[int, int], bool]], None],
    publish: Callable[[], Manifest],
    advance: Callable[[int], None],
) -> Manifest:
    """Compute what nobody else does until every shard is committed; then one process publishes the manifest.

    Args:
        writer: where the build has begun.
        claims: of this process.
        compute: commits some units, those alone for which its second argument, asked right before, says yes.
        publish: writes what all views share, and the manifest.
        advance: called with the rows of each shard that another process committed meanwhile.

    Returns:
        The manifest, whoever has published it.
    """
    units = list(writer.shards())
    left = {(view, shard): (view, shard, rows) for view, shard, rows in units}
    looked = 0.0

    def look() -> None:
        """Strike off what is committed, and count what others did of it."""
        nonlocal looked
        for shard in left.keys() & writer.recorded():
            _, _, rows = left.pop(shard)
            advance(0 if writer.committed_here(*shard) else len(rows))
        looked = time.monotonic()

    def take(view: int, shard: int) -> bool:
        if time.monotonic() - looked > _LOOK_SECONDS:
            look()
        # Asked again with the claim in hand: an owner that left may have committed the shard before.
        return (
            (view, shard) in left
            and writer.wanted(view, shard)
            and claims.take(f"{view}/{shard}")
            and writer.wanted(view, shard)
        )

    for shard in writer.recorded():
        del left[shard]
    waiting = False
    while not writer.published():
        compute(list(left.values()), take)
        look()
        if not left and claims.take("manifest") and not writer.published():
            # All that others, or earlier runs, have committed is read again, once.
            damaged = [unit for unit in units if not writer.committed(unit[0], unit[1])]
            if damaged:
                _LOG.info("%d shards are damaged since they were committed: computing them again", len(damaged))
                compute(damaged, lambda view, shard: True)
            return publish()
        if not waiting:
            waiting = True
            _LOG.info("waiting for the other processes that build this cache; %d shards are theirs", len(left))
        time.sleep(POLL_SECONDS)
    writer.look()
    assert writer.manifest is not None
    return writer.manifest
