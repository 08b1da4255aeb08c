"""Build a cache: render every view, run the teacher once on each, encode, commit shard by shard."""

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gdkd_cache.building.builder import Builder
from gdkd_cache.building.compute import grouped
from gdkd_cache.building.cooperate import POLL_SECONDS, Fitted, Unit, agree_on_codec, share_shards
from gdkd_cache.building.options import BuildOptions
from gdkd_cache.cache.cache import open_cache
from gdkd_cache.data.source import Source
from gdkd_cache.errors import CacheError, MismatchError
from gdkd_cache.models.network import Network
from gdkd_cache.progress import progress
from gdkd_cache.ranks import Rank, this_rank
from gdkd_cache.store.claims import Claims
from gdkd_cache.store.differences import check_parts
from gdkd_cache.store.facts import Fidelity
from gdkd_cache.store.layout import PROBE
from gdkd_cache.store.manifest import Identity, Manifest
from gdkd_cache.store.writer import CacheWriter

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """What a build did.

    Attributes:
        manifest: the finished cache's manifest.
        rows_computed: views that this run encoded; those of committed shards are not computed again.
        seconds: wall time of it all, calibration included.
    """

    manifest: Manifest
    rows_computed: int
    seconds: float


def build(options: BuildOptions, source: Source, teacher: Network) -> BuildResult:
    """Build a cache, or go on with one that was interrupted; the same options give the same bytes.

    Raises:
        SourceError: the data cannot be read.
        ModelError: the teacher does not fit the data, or gives NaN or infinity; it names the key.
        MismatchError: the folder holds another build, or `codec_from` is of another teacher, data, recipe or seed;
            it says what differs.
        CacheError: the folder holds something else.
        OSError: it cannot be written; what is committed stays, and the same build resumes.
    """
    builder = Builder(options, source, teacher)
    identity = builder.identity()
    given = None if options.codec_from is None else open_cache(options.codec_from)
    if given is not None:
        theirs = given.manifest.identity
        identity = replace(identity, request=theirs.request, codec=theirs.codec, fidelity=theirs.fidelity)
        check_parts(given.path, theirs, "this build", identity)
    rank, start, computed = this_rank(), time.monotonic(), 0
    writer = _writer(options, identity, rank)
    if writer.manifest is not None:
        _LOG.info("%s is already complete: nothing to do", options.out)
        writer.clean()
        return BuildResult(manifest=writer.manifest, rows_computed=0, seconds=0.0)
    with Claims(writer.objects) as claims:

        def fit() -> Fitted:
            return _fit(builder, options) if given is None else (given.codec, identity.fidelity)

        def commit(view: int, shard: int, columns: dict[str, np.ndarray]) -> None:
            nonlocal computed
            claims.check()
            writer.commit(view, shard, columns)
            computed += len(columns[PROBE])

        def compute(units: Sequence[Unit], take: Callable[[int, int], bool]) -> None:
            groups = grouped(units, in_memory=builder.renderer.in_memory, num_ranks=rank.world_size)
            first = len(groups) * rank.rank // rank.world_size  # each rank begins elsewhere
            work = (
                replace(group, views=views)
                for group in groups[first:] + groups[:first]
                if (views := tuple(view for view in group.views if take(view, group.shard)))
            )
            begun = next(work, None)
            if begun is not None:  # else no worker is started
                builder.compute(itertools.chain([begun], work), codec, commit, advance)

        def publish() -> Manifest:
            return writer.finish(builder.keys, builder.labels, builder.source_probes())

        codec, _ = agree_on_codec(writer, claims, fit)
        recorded, shards = writer.recorded(), list(writer.shards())
        if recorded:
            _LOG.info("resuming: %d of %d shards are committed already", len(recorded), len(shards))
        total = sum(len(rows) for view, shard, rows in shards if (view, shard) not in recorded)
        with progress("build", total, "images") as advance:
            manifest = share_shards(writer, claims, compute, publish, advance)
    writer.clean()
    return BuildResult(manifest=manifest, rows_computed=computed, seconds=time.monotonic() - start)


def _fit(builder: Builder, options: BuildOptions) -> Fitted:
    choice = builder.calibrate().choose()
    if choice.worst_error > options.request.fidelity:
        _LOG.info(
            "codec %s loses more than --fidelity %g: gradient error %.3g, the worst of the declared losses",
            *(choice.codec.to_json()["name"], options.request.fidelity, choice.worst_error),
        )
    return choice.codec, Fidelity(**choice.fidelity)


def _writer(options: BuildOptions, identity: Identity, rank: Rank) -> CacheWriter:
    """The writer; of several ranks the first one alone clears the place with `force`, and the others wait for that."""
    while True:
        try:
            return CacheWriter(options.out, identity, force=options.force and rank.rank == 0)
        except (CacheError, MismatchError):
            if not (options.force and rank.rank):
                raise
            time.sleep(POLL_SECONDS)
