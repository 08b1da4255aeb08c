"""Does this source, on this machine, give the pixels that the teacher saw? Probes decide, and checks of every image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gdkd_cache.data.checks import Comparison
from gdkd_cache.data.images.unrendered import DecodedImages
from gdkd_cache.data.loader import ViewLoader, default_num_workers
from gdkd_cache.data.probes import ROUNDING_RMS, difference, probed, refuse_difference
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.source import FullSource
from gdkd_cache.data.views import VIEWS_AT_ONCE, ViewRenderer, ViewRequest, requests_for
from gdkd_cache.errors import CacheError, MismatchError
from gdkd_cache.schema import to_json
from gdkd_cache.seeding import hash_keys
from gdkd_cache.store.layout import PROBE
from gdkd_cache.store.reader import CacheReader

_ROWS_AT_ONCE = 64
_BYTES_AT_ONCE = 80 * 2**20
_WORTH_WORKERS = 4096


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What the probes and the checks said.

    Attributes:
        exact: probed views whose checksums agree: the pixels are the teacher's to the bit.
        rounding: probed views that differ by rounding only (RMS below 2 of 255).
        rounding_sources: those of them whose decoded image differs by rounding already.
        worst_rms: the largest estimated RMS among them.
        images: decoded images that were compared with those of the build, each by its check.
        rounding_images: those of them that differ by rounding.
        pending: images that are compared whenever they are decoded.
        unchecked: images of which a cache has no check, as an older version made it.
    """

    exact: int = 0
    rounding: int = 0
    rounding_sources: int = 0
    worst_rms: float = 0.0
    images: int = 0
    rounding_images: int = 0
    pending: int = 0
    unchecked: int = 0

    def __str__(self) -> str:
        said = [self._of_probes()]
        if self.rounding_images:
            said.append(rounding_line(self.rounding_images, self.images))
        elif self.images:
            said.append(f"all {self.images} images are the teacher's")
        if self.pending:
            said.append(f"each of {self.pending} images is compared when it is decoded")
        if self.unchecked:
            said.append(f"{self.unchecked} images unchecked but for those, as the cache was made by an older version")
        return "; ".join(said)

    def _of_probes(self) -> str:
        if not self.exact + self.rounding:
            return "replay not checked: none of these rows is probed (1 in 64 is)"
        if not self.rounding:
            return f"replay exact: {self.exact} probed views have the teacher's pixels to the bit"
        stage = "the image decoder" if self.rounding_sources else "the resize"
        return (
            f"replay differs by rounding: {self.rounding} of {self.exact + self.rounding} probed views, RMS up to "
            f"{self.worst_rms:.2f} of 255; {stage} rounds otherwise than in the library versions of the build"
        )


def recipe_of(cache: CacheReader, asked: Recipe | None = None) -> Recipe:
    """The recipe of a cache's views.

    Args:
        cache: the cache.
        asked: the recipe that the user named; needed for `compat:` recipes, as a cache must not name code.

    Raises:
        CacheError: the cache has no recipe, or one that cannot be read.
        MismatchError: the recipe asked for is another, or none was asked for and the views need the user's code.
    """
    views = cache.manifest.identity.views
    if views is None:
        raise CacheError(
            f"{cache.path} was packed from logits computed elsewhere and names no recipe: "
            "replay its views yourself and read them with Cache.view"
        )
    if asked is None:
        return Recipe.from_json(to_json(views.recipe))
    if not asked.same_pixels(to_json(views.recipe)):
        raise MismatchError(
            f"recipe {asked.name} is not the cache's {views.recipe.name}, or has other settings: "
            "the teacher saw other views; leave --recipe out"
        )
    return asked


def check_replay(
    cache: CacheReader,
    source: FullSource,
    cache_rows: np.ndarray,
    views: Sequence[int],
    *,
    recipe: Recipe | None = None,
    limit: int | None = None,
    strict: bool = False,
) -> Replay:
    """Decode and render the probed rows again and compare.

    Args:
        cache: the cache.
        source: the images.
        cache_rows: int64 [source row], the cache row of each of the source's rows.
        views: which views to check.
        recipe: as for `recipe_of`.
        limit: at most so many probed rows a view; None checks all.
        strict: also refuse a difference by rounding.

    Raises:
        MismatchError: an image or a view differs, or differs by rounding under `strict`; it names the first key
            and the stage.
    """
    recipe = recipe_of(cache, recipe)
    made = cache.manifest.identity.views
    assert made is not None
    seed = made.seed
    rows = np.flatnonzero(probed(hash_keys(cache.keys))[cache_rows])[:limit]
    renderer = ViewRenderer(source, recipe, seed, probe_rows=np.ones(len(source), bool), probe_sources=True)
    many = len(rows) * len(views) > _WORTH_WORKERS
    loader = ViewLoader(renderer, num_workers=default_num_workers(source) if many else 0)
    sources, decoded = cache.source_probes(), "decoded image or mask" if source.has_masks else "decoded image"
    height, width = made.size
    if len(rows) and (found := renderer[ViewRequest((0,), rows[:1])][0].pixels.shape[2:]) != (height, width):
        raise MismatchError(
            f"replay: recipe {recipe.name} renders {source.keys[int(rows[0])]!r} to {found[0]}x{found[1]} pixels, and "
            f"the teacher saw {height}x{width}: the image or the recipe is another; use those of the build"
        )
    # Views may be large, and what a manifest says of them is not to be trusted with memory.
    rows_at_once = max(1, min(_ROWS_AT_ONCE, _BYTES_AT_ONCE // (VIEWS_AT_ONCE * 3 * height * width)))
    exact, rounding, rounding_sources, worst = 0, 0, 0, 0.0
    for first in range(0, len(views), VIEWS_AT_ONCE):
        group = tuple(views[first : first + VIEWS_AT_ONCE])
        stored = {view: cache.column(PROBE, view) for view in group}
        for batch in loader.stream(requests_for(group, rows, rows_at_once)):
            assert batch.probes is not None
            assert batch.source_probes is not None
            for row, image, rendered in zip(batch.rows.tolist(), batch.source_probes, batch.probes, strict=True):
                key = source.keys[row]
                from_image = difference(sources[cache_rows[row]], image)
                rms = difference(stored[batch.view][cache_rows[row]], rendered)
                what, why = f"the {decoded} of {key!r}", "its file or its decoder is another"
                refuse_difference(what, from_image, ROUNDING_RMS, why, strict=strict)
                why = f"recipe {recipe.name} or seed {seed} is another, or a library renders it otherwise"
                why = f"{why}; the {decoded} is the same"
                refuse_difference(f"view {batch.view} of {key!r}", rms, ROUNDING_RMS, why, strict=strict)
                exact, rounding, worst = exact + (rms == 0), rounding + (rms > 0), max(worst, rms)
                rounding_sources += from_image > 0
    return Replay(exact=exact, rounding=rounding, rounding_sources=rounding_sources, worst_rms=worst)


def comparison_with(
    caches: Sequence[CacheReader], source: FullSource, cache_rows: np.ndarray, *, strict: bool
) -> Comparison | None:
    """What each of the source's images must be for all the caches; None where none of them has checks.

    Args:
        caches: of one and the same key table.
        source, cache_rows, strict: as for `check_replay`.

    Raises:
        CacheError: the checks are damaged.
    """
    stored = [checks[cache_rows] for cache in caches if (checks := cache.source_checks()) is not None]
    return Comparison(source.keys, stored, strict=strict) if stored else None


def compare_images(
    source: FullSource, recipe: Recipe, comparison: Comparison, advance: Callable[[int], None] = lambda _: None
) -> int:
    """Decode every image and compare it; images in memory are compared as they lie there.

    Args:
        source: the images.
        recipe: how they are decoded.
        comparison: what they must be.
        advance: is told how many were compared.

    Returns:
        How many differ by rounding.

    Raises:
        MismatchError: an image is another, or differs by rounding where that is refused; it names the key.
        SourceError: it cannot be decoded.
    """
    workers = default_num_workers(source) if len(source) > _WORTH_WORKERS else 0
    loader = ViewLoader(DecodedImages(source, recipe, comparison=comparison), num_workers=workers)
    rounding = 0
    for batch in loader.stream(requests_for(0, np.arange(len(source)), _ROWS_AT_ONCE)):
        assert batch.rounded is not None
        rounding += int(batch.rounded.sum())
        advance(len(batch.rows))
    return rounding


def rounding_line(rounding: int, images: int) -> str:
    """What is said of images that differ by rounding."""
    return (
        f"{rounding} of {images} images differ from the teacher's by rounding: their decoder rounds otherwise than in "
        "the library versions of the build"
    )
