"""Is this cache whole, and do these images and this teacher belong to it?"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gdkd_cache.cache.cache import Cache, open_cache
from gdkd_cache.cache.replay import Replay, check_replay, compare_images, comparison_with, recipe_of
from gdkd_cache.cache.rows import match_rows
from gdkd_cache.checking.rerun import Rerun, rerun
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.source import FullSource, Source, settle
from gdkd_cache.errors import CacheError, MismatchError, UsageError
from gdkd_cache.models.network import Network
from gdkd_cache.progress import progress

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class VerifyResult:
    """What a verification found.

    Attributes:
        digest: of the manifest.
        num_objects: objects whose size and checksum were compared.
        problems: one line each; empty when all is well.
        views_decoded: views of which every value was decoded and checked.
        replay: what the probes and the checks of the images said; None without a source or when it failed.
        rerun: what the teacher said; None without one or when something failed before.
    """

    digest: str
    num_objects: int
    problems: tuple[str, ...]
    views_decoded: int
    replay: Replay | None
    rerun: Rerun | None


def verify(
    path: str | Path,
    *,
    digest: str | None = None,
    local_copy: str | Path | None = None,
    deep: bool = False,
    source: Source | None = None,
    recipe: Recipe | None = None,
    strict: bool = False,
    teacher: Network | None = None,
    num_rows: int = 256,
) -> VerifyResult:
    """Compare every object with the manifest and, given the images, each of them, and every probe of every view.

    Args:
        path: the cache folder, or a URL.
        digest: refuse a cache with another digest.
        local_copy: as for `open_cache`: what is decoded is read there; checksums are always those of the cache itself.
        deep: also decode every chunk of every view, and check every value.
        source: the images; decodes all, and renders the views of the probed ones again.
        recipe: what the views are made with, where the manifest's word is not enough (`compat:`).
        strict: also count a difference by rounding as a problem.
        teacher: run it again on some rows, and compare its logits; needs the source.
        num_rows: on how many (view, row).

    Raises:
        CacheError: there is no cache, or its manifest is damaged.
        MismatchError: another digest.
        UsageError: a teacher without a source, or of a cache with noise, or too few rows.
    """
    if teacher is not None and source is None:
        raise UsageError("a teacher can only be run again on the images; give the data too")
    cache = open_cache(path, digest=digest, local_copy=local_copy)
    noise = cache.manifest.identity.noise
    if teacher is not None and noise is not None:
        raise UsageError(
            f"{path} has noise (epsilon {noise.epsilon:g}) whose secret is deleted, so that no teacher says what it "
            "holds; leave the teacher out"
        )
    problems: list[str] = []
    views_decoded, replay, said = 0, None, None
    with progress("verify", len(cache.manifest.objects), "objects") as advance:
        for _, problem in cache.problems():
            advance(1)
            if problem is not None:
                problems.append(problem)
    if deep and not problems:
        with progress("decode", cache.num_views, "views") as advance:
            try:
                _ = cache.keys
                for number in cache.view_numbers:
                    _decode(cache, number)
                    views_decoded += 1
                    advance(1)
            except CacheError as error:
                problems.append(str(error))
    if source is not None and not problems:
        try:
            source = settle(source)
            rows = match_rows(cache, source)
            probes = check_replay(cache, source, rows, cache.view_numbers, recipe=recipe, strict=strict)
            replay = replace(probes, **_images(cache, source, rows, recipe, strict=strict))
            if teacher is not None:
                said = rerun(cache, source, rows, teacher, num_rows=num_rows, recipe=recipe)
                problems += said.problems
        except (CacheError, MismatchError) as error:
            problems.append(str(error))
    return VerifyResult(
        digest=cache.manifest.digest,
        num_objects=len(cache.manifest.objects),
        problems=tuple(problems),
        views_decoded=views_decoded,
        replay=replay,
        rerun=said,
    )


def _decode(cache: Cache, number: int) -> None:
    """Decode every row of a view, which its loading has checked.

    Raises:
        CacheError: its data is damaged, or decodes to what are no logits.
    """
    view = cache.view(number)
    for first in range(0, cache.num_rows, _ROWS_AT_ONCE):
        rows = np.arange(first, min(first + _ROWS_AT_ONCE, cache.num_rows))
        finite = view.logits(rows).isfinite().flatten(1).all(-1).numpy()
        if not finite.all():
            row = int(rows[~finite][0])
            raise CacheError(f"{cache.path}: view {number}: row {row} decodes to logits that are not finite")


def _images(
    cache: Cache, source: FullSource, cache_rows: np.ndarray, recipe: Recipe | None, *, strict: bool
) -> dict[str, int]:
    """What `Replay` says of all the images."""
    comparison = comparison_with([cache], source, cache_rows, strict=strict)
    if comparison is None:
        return {"unchecked": len(source)}
    with progress("compare", len(source), "images") as advance:
        rounding = compare_images(source, recipe_of(cache, recipe), comparison, advance)
    return {"images": len(source), "rounding_images": rounding}
