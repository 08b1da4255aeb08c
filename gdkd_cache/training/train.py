"""Train a network with cross-entropy and, from a cache or a live teacher, a distillation loss."""

import copy
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from gdkd_cache.cache.cache import Cache
from gdkd_cache.cache.ensemble import Ensemble
from gdkd_cache.cache.view import View
from gdkd_cache.data.images.memory import decoded_once
from gdkd_cache.data.loader import default_num_workers
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.source import FullSource, Source, settle
from gdkd_cache.data.views import ViewRenderer, ViewRequest, image_size
from gdkd_cache.device import choose_device, laid_out
from gdkd_cache.errors import MismatchError, UsageError
from gdkd_cache.losses.base import Loss, loss_from_json
from gdkd_cache.losses.registry import LOSSES
from gdkd_cache.models.beginning import Beginning
from gdkd_cache.models.build import build_model
from gdkd_cache.models.card import ModelCard
from gdkd_cache.models.statements import public_name
from gdkd_cache.models.trial import try_student
from gdkd_cache.schema import short
from gdkd_cache.threads import in_threads
from gdkd_cache.training.batches import Batches, cached_batches, rendered_batches
from gdkd_cache.training.distributed import process_group, rank_and_size
from gdkd_cache.training.evaluate import Evaluator
from gdkd_cache.training.folder import RunFolder
from gdkd_cache.training.loop import Training, TrainResult
from gdkd_cache.training.options import TrainOptions
from gdkd_cache.training.state import State
from gdkd_cache.training.task import Task
from gdkd_cache.training.threads import choose_threads

_LOG = logging.getLogger(__name__)


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


def train(
    options: TrainOptions,
    source: Source,
    eval_source: Source,
    *,
    cache: Cache | Ensemble | None = None,
    strict_replay: bool = False,
    recipe: Recipe | None = None,
    views: Views | None = None,
    teacher: Callable[[Tensor], Tensor] | None = None,
) -> TrainResult:
    """Train a network, fresh or from `init`; writes checkpoints and one JSON line of metrics an epoch as it goes.

    With a cache, views and teacher are the cache's. Without one, `views` are rendered, and a distillation loss
    needs a live `teacher`: uint8 [batch, 3, height, width] -> logits [batch, class].

    Args:
        options: how to train.
        source: the training images; with a cache, all or some of those that it was built from.
        eval_source: evaluated after each epoch, without augmentation.
        cache: what the distillation loss reads; an ensemble stands for several teachers.
        strict_replay: with a cache, also refuse views that differ from the teacher's by rounding.
        recipe: with a cache, what its views are made with, where the manifest's word is not enough (`compat:`).
        views: without a cache, what to render.
        teacher: without a cache, the live teacher.

    Raises:
        UsageError: a distillation loss without cache or teacher, or the reverse.
        NotServedError: the cache cannot serve the loss.
        ModelError: the network cannot be built, cannot take such images, or gives no logit a class.
        MismatchError: source and cache, or the two sources, do not belong together; or `out` holds an earlier
            training, and `force` is off.
        SourceError: an image cannot be read.
        OSError: `out` cannot be written.
    """
    task = Task.of(options)
    if (task.distillation is None) != (cache is None and teacher is None):
        raise UsageError("a distillation loss needs a cache (or a live teacher), and cross-entropy takes none")
    if (cache is not None and (views is not None or teacher is not None)) or (cache is None and recipe is not None):
        raise UsageError("a cache brings its own views and its teacher; give either a cache or views")
    source, eval_source = settle(source), settle(eval_source)
    _require_same_classes(source, eval_source)
    folder = RunFolder(options.out, force=options.force)
    beginning = None if options.init is None else Beginning.of(options.student, options.init, options.init_key)
    if beginning is not None and beginning.normalization is not None:
        source = replace(source, mean=beginning.normalization.mean, std=beginning.normalization.std)
    device = choose_device(options.device)
    with process_group(device):
        rank, world_size = rank_and_size()
        if options.batch_size % world_size:
            raise UsageError(
                f"batch_size is {options.batch_size}, the images a step of all {world_size} ranks; it must be a "
                "multiple of their number"
            )
        loading = _Loading(
            batch_size=options.batch_size // world_size,
            seed=options.seed,
            device=device,
        )
        if cache is not None:
            batches, recipe, size = _from_cache(
                options, task.distillation, source, cache, strict_replay, recipe, loading
            )
        else:
            batches, recipe, size = _from_views(options, task.distillation, source, views or Views(), teacher, loading)
        card = ModelCard(
            name=public_name(options.student),
            num_classes=len(source.classes),
            size=size,
            mean=source.mean,
            std=source.std,
            eval_recipe=options.eval_recipe or recipe.evaluation(size),
        )
        evaluator = Evaluator(
            eval_source,
            mean=source.mean,
            std=source.std,
            device=device,
            num_workers=options.num_workers,
            images_in_memory=options.images_in_memory,
            decoded=options.decoded,
            recipe=card.eval_recipe,
        )
        torch.manual_seed(options.seed)
        model = build_model(options.student, card.num_classes)
        if beginning is not None:
            beginning.load(model, card.num_classes)
        model = model.to(device)
        batch_size = min(loading["batch_size"], 2)
        memory_format = try_student(
            options.student, model, card.num_classes, size, num_images=batch_size, device=device
        )
        if memory_format == "channels_last":
            # Weights too: gradients then have their order, which DistributedDataParallel wants.
            model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (torch's stub lacks it)
        if rank:
            torch.manual_seed(options.seed + rank)  # the same weights, but dropout of its own
        training = Training(
            options=options,
            task=task,
            batches=batches,
            num_images=len(source),
            evaluator=evaluator,
            folder=folder,
            card=card,
            device=device,
            memory_format=memory_format,
        )
        pixels = torch.zeros(loading["batch_size"], 3, *size, dtype=torch.uint8)
        with in_threads(_threads(options, device, model, pixels, memory_format, teacher)):
            return training.run(State.begin(options, model))


def _threads(
    options: TrainOptions,
    device: torch.device,
    model: nn.Module,
    pixels: Tensor,
    memory_format: str,
    teacher: Callable[[Tensor], Tensor] | None,
) -> int:
    """How many threads to train in; the network is left as it is."""
    if options.threads is not None or device.type != "cpu":
        return options.threads or torch.get_num_threads()
    trial = copy.deepcopy(model).train()

    def step() -> None:
        if teacher is not None:
            teacher(pixels)
        trial(laid_out(pixels.float(), memory_format)).square().mean().backward()

    return choose_threads(step)


def _require_same_classes(source: FullSource, eval_source: FullSource) -> None:
    pairs = itertools.zip_longest(source.classes, eval_source.classes)
    for number, (ours, theirs) in enumerate(pairs):
        if ours != theirs:
            there, here = ("absent" if name is None else short(name) for name in (theirs, ours))
            raise MismatchError(
                f"class {number} is {there} in evaluation source {eval_source.name}, which has "
                f"{len(eval_source.classes)} classes, and {here} in training source {source.name}, which has "
                f"{len(source.classes)}; both must have the same, in the same order"
            )


class _Loading(TypedDict):
    """How batches are loaded, whatever makes them; `batch_size` is this rank's."""

    batch_size: int
    seed: int
    device: torch.device


_Made = tuple[Batches, Recipe, tuple[int, int]]
"""Batches, the recipe of their views, and the views' height and width."""


def _from_cache(
    options: TrainOptions,
    distillation: Loss | None,
    source: FullSource,
    cache: Cache | Ensemble,
    strict_replay: bool,
    recipe: Recipe | None,
    loading: _Loading,
) -> _Made:
    assert distillation is not None
    cache.require(distillation)
    dataset = cache.dataset(
        source,
        temperature=distillation.temperature,
        strict_replay=strict_replay,
        recipe=recipe,
        size=options.size,
        images_in_memory=options.images_in_memory,
        decoded=options.decoded,
        num_workers=options.num_workers,
    )
    _refuse_mixed_labels(distillation, dataset.recipe)
    for part, view in zip(cache.caches if isinstance(cache, Ensemble) else [cache], dataset.first_views(), strict=True):
        _tell_error(part, distillation, view)
    _LOG.info("%s", dataset.replay)
    if len(dataset) < cache.num_rows:
        _LOG.info("training on %d of the %d cached rows", len(dataset), cache.num_rows)
    batches = cached_batches(dataset, num_workers=_num_workers(options, dataset.source), **loading)
    return batches, dataset.recipe, dataset.size


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


def _from_views(
    options: TrainOptions,
    distillation: Loss | None,
    source: FullSource,
    views: Views,
    teacher: Callable[[Tensor], Tensor] | None,
    loading: _Loading,
) -> _Made:
    recipe = views.recipe if isinstance(views.recipe, Recipe) else open_recipe(views.recipe, *image_size(source))
    _refuse_mixed_labels(distillation, recipe)
    budget, folder = options.images_in_memory, options.decoded
    source = decoded_once(source, recipe, budget, folder, num_workers=options.num_workers)
    rendered = ViewRenderer(source, recipe, views.seed)[ViewRequest((0,), np.arange(1))][0].pixels.shape
    size = (rendered[2], rendered[3])
    if options.size is not None:
        recipe, size = recipe.at_size(size, options.size), (options.size, options.size)
    batches = rendered_batches(
        source,
        recipe,
        view_seed=views.seed,
        views=None if views.num_views is None else range(views.num_views),
        teacher=teacher,
        num_top=distillation.num_top if distillation else 0,
        num_workers=_num_workers(options, source),
        **loading,
    )
    return batches, recipe, size


def _num_workers(options: TrainOptions, source: FullSource) -> int:
    return default_num_workers(source) if options.num_workers is None else options.num_workers


def _refuse_mixed_labels(distillation: Loss | None, recipe: Recipe) -> None:
    if recipe.mix is not None and distillation is not None and distillation.needs_labels:
        others = ", ".join(name for name in LOSSES if not LOSSES.load(name).needs_labels)
        raise UsageError(
            f"{distillation.name} needs one label an image; recipe {recipe.name} mixes images: use one of {others}"
        )
