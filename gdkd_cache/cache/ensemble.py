"""Several teachers as one: the weighted mean of their probabilities, each read from its own cache."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gdkd_cache.cache.cache import Cache
from gdkd_cache.cache.dataset import CachedDataset
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.source import Source, settle
from gdkd_cache.errors import MismatchError, NotServedError, UsageError
from gdkd_cache.losses.base import Loss
from gdkd_cache.schema import short, to_json
from gdkd_cache.store.differences import differences


class Ensemble:
    """Caches of several teachers over the same views, read as one teacher. Made by `ensemble`.

    The teacher is p = sum_i w_i softmax(z_i / T), given to a loss of temperature T as the logits T log p. The mean
    has no rank order that was kept when its teachers were cached: its top classes are those of the mean itself, and
    so as exact as the caches' reconstructions are.

    Attributes:
        caches: one a teacher.
        weights: of their probabilities, above 0, with the sum 1.
    """

    def __init__(self, caches: Sequence[Cache], weights: Sequence[int | float]) -> None:
        self.caches = tuple(caches)
        self.weights = tuple(weight / sum(weights) for weight in weights)

    @property
    def num_rows(self) -> int:
        return self.caches[0].num_rows

    def dataset(
        self,
        source: Source,
        *,
        temperature: float,
        strict_replay: bool = False,
        recipe: Recipe | None = None,
        size: int | None = None,
        views: str | Sequence[int] | None = None,
        images_in_memory: int | None = None,
        decoded: Path | None = None,
        num_workers: int | None = 0,
    ) -> CachedDataset:
        """Join with the images, as `Cache.dataset`; every cache's probes, and its checks of the images, are compared.

        Args:
            source, strict_replay, recipe, size, views, images_in_memory, decoded, num_workers: as for `Cache.dataset`.
            temperature: T of the loss that the logits are for: they are another mean at another temperature.

        Raises:
            UsageError, MismatchError: as `Cache.dataset`; or a temperature that is not above 0.
        """
        if not 0 < temperature < math.inf:
            raise UsageError(f"temperature is {temperature}; it must be above 0 and finite")
        return CachedDataset(
            self.caches,
            settle(source),
            weights=self.weights,
            temperature=temperature,
            strict_replay=strict_replay,
            recipe=recipe,
            size=size,
            views=views,
            images_in_memory=images_in_memory,
            decoded=decoded,
            num_workers=num_workers,
        )

    def require(self, loss: Loss) -> None:
        """Refuse a loss that one of the caches cannot serve, or that the mean cannot.

        Raises:
            NotServedError: it says why.
        """
        if loss.standardize:
            raise NotServedError(f"{loss} standardizes one teacher's logits; give one cache, or leave it out")
        for cache in self.caches:
            cache.require(loss)


def ensemble(caches: Sequence[Cache], weights: Sequence[int | float] | None = None) -> Ensemble:
    """Read several teachers' caches as one teacher.

    Args:
        caches: two or more, of the same rows, classes and views.
        weights: of each one's probabilities, 1e-6 to 1e6; only their ratios matter. None weighs all alike.

    Raises:
        UsageError: fewer than two caches, packed logits, or weights that do not fit.
        MismatchError: the caches differ in rows, labels, classes or views; it names what.
        CacheError: keys or labels are damaged.
    """
    caches = list(caches)
    weights = [1.0] * len(caches) if weights is None else list(weights)
    if len(caches) < 2 or len(weights) != len(caches):
        raise UsageError(f"{len(caches)} caches and {len(weights)} weights; give at least two, and one weight each")
    for weight in weights:
        if not 1 / _LARGEST_WEIGHT <= weight <= _LARGEST_WEIGHT:
            allowed = f"{1 / _LARGEST_WEIGHT:g} to {_LARGEST_WEIGHT:g}"
            raise UsageError(f"a cache's weight is {short(weight)}; it must be {allowed}, as only ratios matter")
    first = caches[0]
    for cache in caches:
        where = f"{cache.path} and {first.path}"
        if cache.manifest.identity.views is None:
            raise UsageError(f"{cache.path} was packed from logits computed elsewhere, and has no views to average")
        for name, there, here in differences(_common(cache), _common(first)):
            raise MismatchError(f"{where} cannot be averaged: {name} is {there} there, {here} here; {_SAME}")
        if cache.keys != first.keys:
            raise MismatchError(f"{where} cannot be averaged: their keys, or the keys' order, differ; {_SAME}")
        if not (cache.labels == first.labels).all():
            raise MismatchError(f"{where} cannot be averaged: their labels differ; {_SAME}")
    return Ensemble(caches, weights)


_LARGEST_WEIGHT = 1e6
_SAME = "build both over the same data, with the same recipe, seed and views"


def _common(cache: Cache) -> dict[str, Any]:
    identity = cache.manifest.identity
    assert identity.views is not None
    recipe = replace(identity.views.recipe, name="")  # what was typed for it
    # Caches of older versions have no checks, and are no worse teachers for that.
    views = replace(identity.views, first=identity.view_numbers.start, recipe=recipe, source_checks=False)
    extent = {"num_rows": identity.num_rows, "num_views": identity.num_views, "classes": identity.classes}
    return to_json(extent | {"views": views})
