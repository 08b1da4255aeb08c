"""Build a cache: render every view, run the teacher once on each, encode, commit shard by shard."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from gdkd_cache.cache import open_cache
from gdkd_cache.codec import Calibration, CodecRequest, calibration_rows
from gdkd_cache.data import (
    Recipe,
    Source,
    ViewLoader,
    ViewRenderer,
    ViewRequest,
    check_source,
    default_num_workers,
    image_size,
    labels_of,
    name_of,
    open_recipe,
    requests_for,
)
from gdkd_cache.data.probes import probed
from gdkd_cache.errors import CacheError, MismatchError, UsageError
from gdkd_cache.pipeline.cooperate import POLL_SECONDS, Fitted, Unit, agree_on_codec, share_shards
from gdkd_cache.pipeline.device import describe
from gdkd_cache.pipeline.parts import check_parts
from gdkd_cache.pipeline.progress import progress
from gdkd_cache.pipeline.shards import ROWS_AT_ONCE, compute_shards, finite_logits, grouped
from gdkd_cache.pipeline.teacher import Teacher
from gdkd_cache.ranks import Rank, this_rank
from gdkd_cache.seeding import hash_keys
from gdkd_cache.store import (
    PROBE,
    PROBE_BYTES,
    SHARD_ROWS,
    CacheWriter,
    Claims,
    Identity,
    Manifest,
    encode_keys,
    make_card,
)
from gdkd_cache.store.manifest import MOST_VIEWS

_LOG = logging.getLogger(__name__)
_SOFTWARE = ("gdkd-cache", "numpy", "pillow", "torch", "torchvision", "zarr")


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What to build.

    Attributes:
        out: the cache folder, or the URL of an object store.
        num_views: views of each image, at least 1.
        recipe: a spec such as `crop-flip`, or a recipe.
        first_view: number of the first view; teams that build 0..19 and 20..39 can merge them.
        seed: the views' seed.
        request: the codec, or the gradient error that it shall meet for the declared losses.
        codec_from: a finished cache, a folder or a URL, of the same data, teacher, recipe and seed, whose
            codec is taken as it is, instead of `request`.
        batch_size: rows the teacher sees at once; part of the cache's identity, as it moves a teacher's last bits.
        num_workers: processes that render; None takes 0 for images in memory, else one a core (at most 8).
        force: replace another cache in `out`.
        shard_rows: rows a shard, the unit of commit and resume.
        license, contact: what you say of the cache, one line each: part of its identity and shown by `inspect`.

    Raises:
        UsageError: a number out of range, or a license or contact that is no short line.
    """

    out: str | Path
    num_views: int
    first_view: int = 0
    recipe: str | Recipe = "crop-flip"
    seed: int = 0
    request: CodecRequest = field(default_factory=CodecRequest)
    codec_from: str | Path | None = None
    batch_size: int = 256
    num_workers: int | None = None
    force: bool = False
    shard_rows: int = SHARD_ROWS
    license: str | None = None
    contact: str | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("num_views", 1),
            ("first_view", 0),
            ("batch_size", 1),
            ("num_workers", 0),
            ("shard_rows", 1),
        ):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.first_view + self.num_views > MOST_VIEWS:
            raise UsageError(f"first_view + num_views is {self.first_view + self.num_views}; at most {MOST_VIEWS}")
        make_card(self.license, self.contact)


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


def build(options: BuildOptions, source: Source, teacher: Teacher) -> BuildResult:
    """Build a cache, or go on with one that was interrupted; the same options give the same bytes.

    Raises:
        SourceError: the data cannot be read.
        ModelError: the teacher does not fit the data, or gives NaN or infinity; it names the key.
        MismatchError: the folder holds another build, or `codec_from` is of another teacher, data, recipe or seed;
            it says what differs.
        CacheError: the folder holds something else.
        OSError: it cannot be written; what is committed stays, and the same build resumes.
    """
    check_source(source)
    labels = labels_of(source)
    keys = list(source.keys)
    size = image_size(source)
    recipe = options.recipe if isinstance(options.recipe, Recipe) else open_recipe(options.recipe, *size)
    probe_rows = probed(hash_keys(keys))
    renderer = ViewRenderer(source, recipe, options.seed, probe_rows=probe_rows, device=teacher.device)
    view_size = renderer[ViewRequest((0,), np.arange(1))][0].pixels.shape[2:]
    teacher.check_classes(source, (view_size[0], view_size[1]))
    options.request.check(len(source.classes))
    identity = identity_of(options, source, keys, recipe, teacher, list(view_size))
    given = None if options.codec_from is None else open_cache(options.codec_from)
    if given is not None:
        theirs = given.manifest.identity
        identity = replace(identity, request=theirs.request, codec=theirs.codec, fidelity=theirs.fidelity)
        check_parts(given.reader.path, theirs, "this build", identity)
    start = time.monotonic()
    rank = this_rank()
    writer = _writer(options, identity, rank)
    if writer.manifest is not None:
        _LOG.info("%s is already complete: nothing to do", options.out)
        writer.clean()
        return BuildResult(manifest=writer.manifest, rows_computed=0, seconds=0.0)
    if given is not None:
        writer.fitted = given.codec, identity.fidelity

    def fit() -> Fitted:
        stored_rows = len(keys) * options.num_views
        calibration = calibrate(options.request, source, renderer, teacher, options, stored_rows=stored_rows)
        choice = calibration.choose()
        if choice.worst_error > options.request.fidelity:
            _LOG.info(
                "codec %s loses more than --fidelity %g: gradient error %.3g, the worst of the declared losses",
                *(choice.codec.to_json()["name"], options.request.fidelity, choice.worst_error),
            )
        return choice.codec, choice.fidelity

    num_workers, computed = workers_of(options, source), 0
    with Claims(writer.objects) as claims:
        codec, _ = agree_on_codec(writer, claims, fit)

        def commit(view: int, shard: int, columns: dict[str, np.ndarray]) -> None:
            nonlocal computed
            claims.check()
            writer.commit(view, shard, columns)
            computed += len(columns[PROBE])

        def compute(units: Sequence[Unit], take: Callable[[int, int], bool]) -> None:
            groups = grouped(units, renderer)
            first = len(groups) * rank.rank // rank.world_size  # each rank begins elsewhere
            work = (
                replace(group, views=views)
                for group in groups[first:] + groups[:first]
                if (views := tuple(view for view in group.views if take(view, group.shard)))
            )
            compute_shards(options.batch_size, work, renderer, num_workers, teacher, codec, commit, keys, advance)

        def publish() -> Manifest:
            rows = np.flatnonzero(probe_rows)
            return writer.finish(keys, labels, probe_sources(source, recipe, options.seed, rows, num_workers))

        recorded, shards = writer.recorded(), list(writer.shards())
        if recorded:
            _LOG.info("resuming: %d of %d shards are committed already", len(recorded), len(shards))
        total = sum(len(rows) for view, shard, rows in shards if (view, shard) not in recorded)
        with progress("build", total, "images") as advance:
            manifest = share_shards(writer, claims, compute, publish, advance)
    writer.clean()
    return BuildResult(manifest=manifest, rows_computed=computed, seconds=time.monotonic() - start)


def _writer(options: BuildOptions, identity: Identity, rank: Rank) -> CacheWriter:
    """The writer; of several ranks the first one alone clears the place with `force`, and the others wait for that."""
    while True:
        try:
            return CacheWriter(options.out, identity, force=options.force and rank.rank == 0)
        except (CacheError, MismatchError):
            if not (options.force and rank.rank):
                raise
            time.sleep(POLL_SECONDS)


def identity_of(
    options: BuildOptions,
    source: Source,
    keys: list[str],
    recipe: Recipe,
    teacher: Teacher,
    view_size: list[int],
) -> Identity:
    """The identity of what a build would make, its codec and fidelity left open."""
    return Identity(
        num_rows=len(keys),
        num_views=options.num_views,
        classes=tuple(source.classes),
        data={"name": name_of(source), "digest": source.digest, "keys_bytes": len(encode_keys(keys))},
        views={"recipe": recipe.to_json(), "seed": options.seed, "size": view_size, "first": options.first_view},
        teacher=teacher.description,
        request=options.request.to_json(),
        codec={},
        fidelity={},
        build={
            "batch_size": options.batch_size,
            "device": describe(teacher.device),
            "precision": teacher.precision,
            "software": {name: version(name) for name in _SOFTWARE},
        },
        shard_rows=options.shard_rows,
        card=make_card(options.license, options.contact),
    )


def calibrate(
    request: CodecRequest,
    source: Source,
    renderer: ViewRenderer,
    teacher: Teacher,
    options: BuildOptions,
    *,
    stored_rows: int,
) -> Calibration:
    """Run the teacher on view 0 of the rows that calibration needs: those of the smallest key hashes.

    Raises:
        ModelError: the teacher gives NaN or infinity.
        SourceError: an image cannot be read.
    """
    hashes = hash_keys(source.keys)
    rows = np.sort(np.argsort(hashes, kind="stable")[: calibration_rows(len(hashes), len(source.classes))])
    loader = ViewLoader(renderer, num_workers=workers_of(options, source), pin_memory=teacher.device.type == "cuda")
    logits, labels = [], []
    with progress("calibrate", len(rows), "images") as advance:
        for batch in loader.stream(requests_for(0, rows, options.batch_size)):
            logits.append(finite_logits(teacher, batch.pixels, batch.rows, source.keys).cpu())
            labels.append(batch.labels)
            advance(len(batch.rows))
    return Calibration(request, torch.cat(logits), torch.cat(labels), stored_rows=stored_rows)


def workers_of(options: BuildOptions, source: Source) -> int:
    return default_num_workers(source) if options.num_workers is None else options.num_workers


def probe_sources(source: Source, recipe: Recipe, seed: int, rows: np.ndarray, num_workers: int) -> np.ndarray:
    """Probes of the decoded images of some rows: uint8 [row, 20], zeros for the others."""
    renderer = ViewRenderer(source, recipe, seed, probe_rows=np.ones(len(source), bool), probe_sources=True)
    probes = np.zeros((len(source), PROBE_BYTES), np.uint8)
    for batch in ViewLoader(renderer, num_workers=num_workers).stream(requests_for(0, rows, ROWS_AT_ONCE)):
        assert batch.source_probes is not None
        probes[batch.rows] = batch.source_probes
    return probes
