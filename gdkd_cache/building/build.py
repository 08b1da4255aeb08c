"""Build a cache: render every view, run the teacher once on each, encode, commit shard by shard."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from gdkd_cache.building.builder import Builder, Render
from gdkd_cache.building.compute import grouped
from gdkd_cache.building.cooperate import Share, begin_together
from gdkd_cache.building.options import BuildOptions
from gdkd_cache.data.source import Source
from gdkd_cache.models.network import Network
from gdkd_cache.progress import progress
from gdkd_cache.store.claims import Claims
from gdkd_cache.store.differences import FITTED, differences_between
from gdkd_cache.store.manifest import Manifest
from gdkd_cache.store.place import Complete, Place
from gdkd_cache.store.writer import CacheWriter
from gdkd_cache.threads import mapped

_LOG = logging.getLogger(__name__)
_READS_AT_ONCE = 8  # as an object store answers each only after a while


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


def build(
    options: BuildOptions,
    source: Source,
    teacher: Network,
    eval_source: Source | None = None,
    *,
    render: Render | None = None,
) -> BuildResult:
    """Build a cache, or go on with one that was interrupted; the same options give the same bytes.

    Args:
        options: what to build, and where.
        source: the images.
        teacher: the teacher.
        eval_source: images to evaluate it on, besides the views; the cache says how right it is on both.
        render: who renders; worker processes, or this one, where nobody is named.

    Raises:
        SourceError: the data cannot be read.
        ModelError: the teacher does not fit the data, gives NaN or infinity (it names the key), or is wrong and not
            accepted (it names what is at fault, as far as that was found).
        MismatchError: the folder holds another build, or was given to another one meanwhile, or `codec_from` is of
            another teacher, data, recipe or seed; it says what differs.
        CacheError: the folder holds something else, if only beside what `force` would replace.
        OSError: it cannot be written; what is committed stays, and the same build resumes.
    """
    builder, place = _begin(options, source, teacher, eval_source, render)
    start, computed = time.monotonic(), 0
    found = place.look(force=options.force)
    if isinstance(found, Complete):
        _LOG.info("%s is already complete: nothing to do", options.out)
        place.clean(found)
        return BuildResult(manifest=found.manifest, rows_computed=0, seconds=0.0)
    builder.hold_images()
    with Claims(place.objects, place.build) as claims:
        if builder.noise is not None:
            # What was committed before, and what others build, has the noise of this very secret.
            builder.noise = replace(builder.noise, secret=claims.agreed("noise", builder.noise.secret))
        writer = begin_together(place, found, claims, builder.fit)
        if isinstance(writer, CacheWriter):
            computed = _share_shards(builder, writer, claims)
    done = place.look()
    assert isinstance(done, Complete)
    place.clean(done)
    return BuildResult(manifest=done.manifest, rows_computed=computed, seconds=time.monotonic() - start)


def _begin(
    options: BuildOptions, source: Source, teacher: Network, eval_source: Source | None, render: Render | None
) -> tuple[Builder, Place]:
    """The builder and its place; a build that stands there goes on with the memory format that it began with."""
    builder = Builder(options, source, teacher, eval_source=eval_source, render=render)
    place = Place(options.out, builder.identity())
    there = place.stated()
    if there is not None:
        differing = differences_between(there, builder.identity(), but=FITTED)
        if differing and all(text.startswith("build.memory_format") for text in differing):
            as_begun = teacher.as_in(there.build)
            builder = Builder(options, source, as_begun, eval_source=eval_source, render=render)
            place = Place(options.out, builder.identity())
    return builder, place


def _share_shards(builder: Builder, writer: CacheWriter, claims: Claims) -> int:
    """Compute what nobody else does until every shard is committed; then one process publishes the manifest.

    Returns:
        How many views this process computed.
    """
    units, recorded, in_memory = list(writer.shards()), writer.recorded(), builder.renderer.in_memory
    references = writer.codec.num_references
    for view, shard in sorted(recorded):
        if view < references and not writer.committed(view, shard):
            _LOG.info("view %d, shard %d is damaged since it was committed: computing it again", view, shard)
            writer.forget(view, shard)
            recorded.discard((view, shard))
    left = [unit for unit in units if unit[:2] not in recorded]
    if recorded:
        _LOG.info("resuming: %d of %d shards are committed already", len(recorded), len(units))

    def load(view: int, shard: int) -> Mapping[str, np.ndarray]:
        return (builder.given_columns if view < writer.first_view else writer.columns)(view, shard)

    with progress("build", sum(len(rows) for _, _, rows in left), "images") as advance:
        share = Share(writer, claims, left, advance)
        while not writer.published():
            builder.compute(share.take(in_memory=in_memory), writer.codec, share.commit, load, advance)
            share.look()
            if share.left or not claims.take("manifest"):
                share.wait()
            elif not writer.published():
                # All that others, or earlier runs, have committed is read again, once.
                whole = mapped(lambda unit: writer.committed(*unit[:2]), units, _READS_AT_ONCE)
                damaged = [unit for unit, stands in zip(units, whole, strict=True) if not stands]
                if damaged:
                    _LOG.info("%d shards are damaged since they were committed: computing them again", len(damaged))
                again = grouped(damaged, in_memory=in_memory, references=references)
                builder.compute(again, writer.codec, share.commit, load, advance)
                objects = builder.reference_objects(writer.codec)
                writer.finish(builder.keys, builder.labels, builder.source_probes(), objects)
    return share.rows_computed
