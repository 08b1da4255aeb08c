"""Where a training's batches come from: a cache, views that are rendered, or these and a live teacher."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from gdkd_cache.cache.cache import Cache
from gdkd_cache.cache.ensemble import Ensemble
from gdkd_cache.cache.view import View
from gdkd_cache.data.images.memory import decoded_once
from gdkd_cache.data.loader import default_num_workers
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.source import FullSource
from gdkd_cache.data.view_numbers import parse_views
from gdkd_cache.data.views import ViewRenderer, ViewRequest, image_size
from gdkd_cache.errors import UsageError
from gdkd_cache.losses.base import Loss, loss_from_json
from gdkd_cache.losses.registry import LOSSES
from gdkd_cache.store.cells import ONE_CELL, Cells
from gdkd_cache.training.batches import Batches, cached_batches, rendered_batches
from gdkd_cache.training.disagreement import Disagreement
from gdkd_cache.training.distributed import rank_and_size
from gdkd_cache.training.options import DISAGREEMENT, TrainOptions

_LOG = logging.getLogger(__name__)


@runtime_checkable
class LiveTeacher(Protocol):
    """What a `Network` offers a training; its own module is a teacher's, and stays out of a training without one."""

    @property
    def cells(self) -> Cells: ...

    def tried(self, num_classes: int, size: tuple[int, int], *, dense: bool = False) -> "LiveTeacher": ...

    def logits(self, pixels: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Views:
    """Which views to train on when no cache says so.

    Attributes:
        recipe: a spec such as `crop-flip`, or a recipe.
        seed: the views' seed.
        num_views: the views come round after so many epochs; None gives each epoch a view of its own.
    """

    recipe: str | Recipe = "crop-flip"
    seed: int = 0
    num_views: int | None = None


class Loading(TypedDict):
    """How batches are loaded, whatever makes them; `batch_size` is this rank's."""

    batch_size: int
    seed: int
    device: torch.device


@dataclass(frozen=True, kw_only=True)
class Feed:
    """What a training is fed with.

    Attributes:
        batches: an epoch's.
        recipe, size: of the views, their height and width.
        keys: of the images, by row.
        views: the views of the epochs, in turn; None where each epoch has its own.
        cells: of which the teacher says something, of each image; one cell without a teacher.
        teacher: a live one.
        disagreement: what chooses the views, where no turn does.
    """

    batches: Batches
    recipe: Recipe
    size: tuple[int, int]
    keys: Sequence[str]
    views: Sequence[int] | None
    cells: Cells = ONE_CELL
    teacher: Callable[[Tensor], Tensor] | None = None
    disagreement: Disagreement | None = None


def from_cache(
    options: TrainOptions,
    distillation: Loss | None,
    source: FullSource,
    cache: Cache | Ensemble,
    strict_replay: bool,
    recipe: Recipe | None,
    loading: Loading,
) -> Feed:
    assert distillation is not None
    cache.require(distillation)
    _refuse_temperatures(options, cache)
    dataset = cache.dataset(
        source,
        temperature=distillation.temperature,
        strict_replay=strict_replay,
        recipe=recipe,
        size=options.size,
        views=options.views,
        images_in_memory=options.images_in_memory,
        decoded=options.decoded,
        num_workers=options.num_workers,
    )
    _refuse_labels(distillation, dataset.recipe, source)
    for part, view in zip(cache.caches if isinstance(cache, Ensemble) else [cache], dataset.first_views(), strict=True):
        _tell_error(part, distillation, view)
    _LOG.info("%s", dataset.replay)
    if len(dataset) < cache.num_rows:
        _LOG.info("training on %d of the %d cached rows", len(dataset), cache.num_rows)
    disagreement = None
    if options.views_by == DISAGREEMENT:
        _refuse_disagreement(source)
        dataset.hold_views()
        disagreement = Disagreement(dataset.view_numbers, len(dataset))
    workers = _num_workers(options, dataset.source)
    batches = cached_batches(dataset, disagreement, num_workers=workers, **loading)
    return Feed(
        batches=batches,
        recipe=dataset.recipe,
        size=dataset.size,
        keys=source.keys,
        views=dataset.view_numbers,
        cells=dataset.cells,
        disagreement=disagreement,
    )


def _refuse_disagreement(source: FullSource) -> None:
    if source.has_masks:
        raise UsageError("views_by disagreement is for images of one class; leave --views-by out for images with masks")
    if rank_and_size()[1] > 1:
        raise UsageError(
            f"views_by disagreement remembers what this rank was shown, and {rank_and_size()[1]} ranks see others each "
            "epoch; train on one, or leave --views-by out"
        )


def _refuse_temperatures(options: TrainOptions, cache: Cache | Ensemble) -> None:
    if options.temperatures is None:
        return
    if isinstance(cache, Ensemble):
        raise UsageError("several caches are averaged at one temperature; leave --temperatures out, or give one cache")
    if cache.manifest.identity.codec.name == "topk":
        raise UsageError(f"{cache.path} keeps the tail's mass at one temperature (topk); leave --temperatures out")


def _tell_error(cache: Cache, loss: Loss, view: View) -> None:
    """Say what to expect of a loss that the cache was not measured for."""
    error, request = cache.gradient_error(loss, view), cache.manifest.identity.request
    if error is None or error.is_measured:
        return
    asked = [*map(loss_from_json, request.losses), loss]
    _LOG.log(
        logging.WARNING if error.value > request.fidelity else logging.INFO,
        "%s was not measured for %s: expect a gradient error of about %.2g, where %.2g was asked for; to have it "
        "measured and met, build with %s",
        *(cache.path, loss, error.value, request.fidelity, " ".join(f"--for {one.spec}" for one in asked)),
    )


def from_views(
    options: TrainOptions,
    distillation: Loss | None,
    source: FullSource,
    views: Views,
    teacher: LiveTeacher | Callable[[Tensor], Tensor] | None,
    loading: Loading,
) -> Feed:
    recipe = views.recipe if isinstance(views.recipe, Recipe) else open_recipe(views.recipe, *image_size(source))
    _refuse_labels(distillation, recipe, source)
    budget, folder = options.images_in_memory, options.decoded
    source = decoded_once(source, recipe, budget, folder, num_workers=options.num_workers)
    rendered = ViewRenderer(source, recipe, views.seed)[ViewRequest((0,), np.arange(1))][0].pixels.shape
    size = (rendered[2], rendered[3])
    if options.size is not None:
        recipe, size = recipe.at_size(size, options.size), (options.size, options.size)
    chosen = None if views.num_views is None else tuple(range(views.num_views))
    if options.views is not None:
        chosen = parse_views(options.views)
    cells = ONE_CELL
    if isinstance(teacher, LiveTeacher):
        teacher = teacher.tried(len(source.classes), size, dense=source.has_masks)
        cells, teacher = teacher.cells, teacher.logits
    elif teacher is not None and source.has_masks:
        cells = Cells.of(teacher(torch.zeros(1, 3, *size, dtype=torch.uint8)))
    batches = rendered_batches(
        source,
        recipe,
        view_seed=views.seed,
        views=chosen,
        teacher=teacher,
        num_top=distillation.num_top if distillation else 0,
        num_workers=_num_workers(options, source),
        **loading,
    )
    return Feed(batches=batches, recipe=recipe, size=size, keys=source.keys, views=chosen, cells=cells, teacher=teacher)


def _num_workers(options: TrainOptions, source: FullSource) -> int:
    return default_num_workers(source) if options.num_workers is None else options.num_workers


def _refuse_labels(distillation: Loss | None, recipe: Recipe, source: FullSource) -> None:
    """Refuse images that are mixed, or have no label, where one label of each is needed.

    Raises:
        UsageError: it says by what.
    """
    unlabelled = f"{source.unlabelled} of {len(source)} images of source {source.name} have no label"
    if distillation is None:
        if source.unlabelled:
            raise UsageError(f"{unlabelled}, and cross-entropy learns nothing from them; leave them out with --subset")
    elif distillation.needs_labels and (recipe.mix is not None or source.unlabelled):
        others = ", ".join(name for name in LOSSES if not LOSSES.load(name).needs_labels)
        why = unlabelled if source.unlabelled else f"recipe {recipe.name} mixes images"
        raise UsageError(f"{distillation.name} needs one label an image; {why}: use one of {others}")
    if recipe.mix is not None and source.unlabelled:
        raise UsageError(f"recipe {recipe.name} mixes images with their labels, and {unlabelled}; use another recipe")
