"""Repair a damaged cache: build exactly what is damaged again, or drop the views that are."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from gdkd_cache.building.builder import Builder
from gdkd_cache.building.compute import Commit, grouped
from gdkd_cache.building.decoded import probe_sources, source_checks
from gdkd_cache.building.options import BuildOptions
from gdkd_cache.cache.cache import Cache, open_cache
from gdkd_cache.cache.replay import recipe_of
from gdkd_cache.codec.base import Codec
from gdkd_cache.codec.request import CodecRequest
from gdkd_cache.data.loader import default_num_workers
from gdkd_cache.data.probes import probed
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.source import FullSource, Source, settle
from gdkd_cache.errors import CacheError, MismatchError, UsageError
from gdkd_cache.models.network import Network
from gdkd_cache.progress import progress
from gdkd_cache.schema import from_json, to_json
from gdkd_cache.seeding import hash_keys
from gdkd_cache.store.differences import FITTED, differences_between
from gdkd_cache.store.facts import CodecFacts
from gdkd_cache.store.layout import (
    IMAGE_SIZE,
    SOURCE_CHECK,
    check_layouts,
    encode_metadata,
    encode_rows,
    encode_shard,
    row_layouts,
    shard_objects,
    shards_of,
    view_layouts,
)
from gdkd_cache.store.manifest import Manifest
from gdkd_cache.store.mend import keep_views, restore


@dataclass(frozen=True, kw_only=True)
class RepairResult:
    """What a repair did.

    Attributes:
        manifest: of the cache as it is now.
        restored: objects that were damaged and are whole again.
        dropped_views: views that were given up.
        problems: what is still wrong, one line each; empty when the cache is whole.
    """

    manifest: Manifest
    restored: tuple[str, ...]
    dropped_views: int
    problems: tuple[str, ...]


def repair(
    path: str | Path,
    *,
    source: Source | None = None,
    teacher: Network | None = None,
    recipe: Recipe | None = None,
    num_workers: int | None = None,
    local_copy: str | Path | None = None,
    drop: bool = False,
) -> RepairResult:
    """Make a damaged cache whole, object by object: each gets the very bytes of the manifest's checksum, or none.

    Metadata needs nothing; labels, keys and what is kept of the images need the source; shards and the codec's tables
    need source and teacher, and go the way of a build. The manifest itself cannot be repaired.

    Args:
        path: the cache folder, or a URL.
        source: the images that it was built from, in the same order.
        teacher: the teacher that it was built with.
        recipe: what the views are made with, where the manifest's word is not enough (`compat:`).
        num_workers: processes that render, as for a build.
        local_copy: as for `open_cache`.
        drop: instead of building damaged shards again, keep only the views before the first damaged one. View
            numbers are addresses of randomness, so the views that stay keep theirs.

    Raises:
        UsageError: the damage needs a source or a teacher that is not given.
        MismatchError: another source or teacher than the manifest's.
        CacheError: no cache, a damaged manifest, nothing that could stay, or objects that come out otherwise here:
            these are left as they were.
        OSError: the folder cannot be written.
    """
    cache = open_cache(path, local_copy=local_copy)
    manifest, identity = cache.manifest, cache.manifest.identity
    found = {name: problem for name, problem in cache.problems() if problem is not None}
    damaged = found.keys() & manifest.objects.keys()
    differing: list[str] = []

    def put(objects: Mapping[str, bytes]) -> None:
        differing.extend(restore(cache, {name: data for name, data in objects.items() if name in damaged}))

    builder = None
    if source is not None:
        source = settle(source)
        if source.digest != identity.data.digest:
            counts = (
                "" if len(source) == identity.num_rows else f"; it has {identity.num_rows} rows, {source.name} has "
            )
            counts += f"{len(source)}: give the --subset that it was built with" if counts else ""
            raise MismatchError(f"{path} was not built from this data: keys, labels or classes differ{counts}")
    if source is not None and teacher is not None:
        builder = _Rebuilder(cache, source, teacher, recipe, num_workers)
    tables = {name for name in damaged if name.startswith("tables/c/")}
    rows = {name for name in damaged if name.startswith(("labels/c/", "keys/c/", "source_probe/c/"))}
    if tables:
        codec = _given(builder, path, tables, "the data and the teacher").codec()
        put(row_layouts(identity)["tables"].encode(codec.tables_bytes()))
    else:
        codec = cache.codec
    if rows:
        known = _given(source, path, rows, "the data")
        put(encode_rows(identity, list(known.keys), known.labels, _source_probes(cache, known, recipe, num_workers)))
    checks = {name for name in damaged if name.startswith((f"{SOURCE_CHECK}/c/", f"{IMAGE_SIZE}/c/"))}
    if checks:
        known = _given(source, path, checks, "the data")
        put(_encode_checks(cache, known, recipe, num_workers, checks))
    put(encode_metadata(identity, codec))
    layouts = view_layouts(identity, codec)
    units = [unit for unit in shards_of(identity) if damaged & {*shard_objects(layouts, unit[0], unit[1])}]
    kept = identity.num_views
    if units and drop and not differing:
        kept = units[0][0] - identity.view_numbers.start
        if not kept:
            raise CacheError(
                f"{path}: view {units[0][0]} is damaged, and no view before it could stay; build the cache again"
            )
        manifest = keep_views(cache, codec, kept)
    elif units and not drop:
        shards = _given(builder, path, damaged - tables - rows - checks, "the data and the teacher, or dropping views,")
        shards.run(units, codec, lambda view, shard, columns: put(encode_shard(layouts, view, shard, columns)))
    if differing:
        here = f"; this machine is another: {builder.other}" if builder is not None and builder.other else ""
        raise CacheError(
            f"{path}: {len(differing)} of {len(damaged)} damaged objects come out otherwise than the manifest says, "
            f"and were left as they were; the first is {differing[0]}{here}"
        )
    return RepairResult(
        manifest=manifest,
        restored=tuple(sorted(damaged & manifest.objects.keys())),
        dropped_views=identity.num_views - kept,
        problems=tuple(problem for _, problem in open_cache(path).problems() if problem is not None),
    )


def _source_probes(
    cache: Cache, source: FullSource, recipe: Recipe | None, num_workers: int | None
) -> np.ndarray | None:
    views = cache.manifest.identity.views
    if views is None:
        return None
    rows = np.flatnonzero(probed(hash_keys(source.keys)))
    workers = default_num_workers(source) if num_workers is None else num_workers
    return probe_sources(source, recipe_of(cache, recipe), views.seed, rows, workers)


def _encode_checks(
    cache: Cache, source: FullSource, recipe: Recipe | None, num_workers: int | None, names: set[str]
) -> dict[str, bytes]:
    """The objects of these names, of the checks and the sizes of the images in their rows."""
    recipe = recipe_of(cache, recipe)
    workers = default_num_workers(source) if num_workers is None else num_workers
    layouts, objects = check_layouts(cache.manifest.identity), dict[str, bytes]()
    for view, shard, rows in shards_of(cache.manifest.identity):
        wanted = {kind: layout for kind, layout in layouts.items() if layout.object_name(shard) in names}
        if wanted and view == cache.view_numbers.start:
            checks, sizes = source_checks(source, recipe, np.array(rows), workers)
            for kind, layout in wanted.items():
                objects |= layout.encode(checks if kind == SOURCE_CHECK else sizes, first_row=rows.start)
    return objects


class _Rebuilder:
    """What builds parts of a cache again: each run of its views as it was built.

    Attributes:
        other: in what this machine differs from those that built the cache, in words; empty when in nothing.
    """

    def __init__(
        self, cache: Cache, source: FullSource, teacher: Network, recipe: Recipe | None, num_workers: int | None
    ) -> None:
        self._cache, self._identity, self._path = cache, cache.manifest.identity, cache.path
        self._builders: list[tuple[range, Builder]] = []
        differing: list[str] = []
        for part in self._identity.parts:
            own = self._identity.of_views(part.view_numbers)
            if own.views is None:
                raise CacheError(f"{self._path} was packed from logits computed elsewhere: pack it again with --force")
            if own.noise is not None:
                raise CacheError(
                    f"{self._path} has noise whose secret is deleted, so that no view can be built again; leave the "
                    "teacher out, and keep the views before the damaged ones with --drop"
                )
            request = CodecRequest.from_json(to_json(own.request))
            options = BuildOptions(
                out=self._path,
                num_views=own.num_views,
                first_view=part.first,
                recipe=recipe_of(cache, recipe),
                seed=own.views.seed,
                codec=request.spec,
                fidelity=request.fidelity,
                losses=request.losses,
                num_top=request.num_top,
                batch_size=part.batch_size or 1,
                num_workers=num_workers,
                shard_rows=own.shard_rows,
            )
            builder = Builder(options, source, teacher.as_in(part), source_checks=own.views.source_checks)
            self._builders.append((part.view_numbers, builder))
            differing += differences_between(own, builder.identity(), but=FITTED)
        differing = list(dict.fromkeys(differing))
        self.other = "; ".join(text for text in differing if text.startswith("build."))
        wrong = [text for text in differing if not text.startswith(("build.", "teacher.accuracy"))]
        if wrong:
            raise MismatchError(f"{self._path} is not of this data and teacher: {'; '.join(wrong[:4])}")

    def codec(self) -> Codec:
        """Calibrate again, as the build of one of the parts did."""
        for _, builder in self._builders:
            chosen = builder.calibrate().choose().codec
            if from_json(CodecFacts, chosen.to_json()) == self._identity.codec:
                return chosen
        raise CacheError(
            f"{self._path}: calibration gives another codec here than the manifest's, so its tables cannot be "
            f"repaired ({self.other or 'the same machine and libraries'}); build the cache again"
        )

    def run(self, units: list[tuple[int, int, range]], codec: Codec, commit: Commit) -> None:
        """Build some (view, shard, rows) again."""
        with progress("repair", sum(len(rows) for _, _, rows in units), "images") as advance:
            for numbers, builder in self._builders:
                own = [unit for unit in units if unit[0] in numbers]
                if own:
                    work = grouped(own, in_memory=builder.renderer.in_memory, references=codec.num_references)
                    builder.compute(work, codec, commit, self._cache.shard_columns, advance)


Given = TypeVar("Given")


def _given(value: Given | None, path: str | Path, names: set[str], what: str) -> Given:
    if value is None:
        raise UsageError(f"{path}: {min(names)} is damaged ({len(names)} such objects); repairing it needs {what}")
    return value
