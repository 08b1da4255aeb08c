"""Train a network with cross-entropy and, from a cache or a live teacher, a distillation loss."""

import dataclasses
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gdkd_cache.cache import Cache, Ensemble
from gdkd_cache.data import (
    Recipe,
    Source,
    ViewRenderer,
    ViewRequest,
    check_source,
    default_num_workers,
    image_size,
    labels_of,
    name_of,
    normalization_of,
    open_recipe,
)
from gdkd_cache.errors import MismatchError, UsageError
from gdkd_cache.models import ModelCard, build_model, save_weights
from gdkd_cache.pipeline.batches import Batches, cached_batches, rendered_batches
from gdkd_cache.pipeline.device import choose_device
from gdkd_cache.pipeline.evaluate import Evaluator
from gdkd_cache.pipeline.optimise import make_optimizer, make_schedule, run_epoch
from gdkd_cache.pipeline.progress import progress
from gdkd_cache.pipeline.train_options import TrainOptions

_LOG = logging.getLogger(__name__)
_FILES = ("best.safetensors", "best.json", "last.safetensors", "last.json", "metrics.jsonl")


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


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training gave.

    Attributes:
        best_accuracy, last_accuracy: top-1 in [0, 1] on the evaluation source.
        best_epoch: from 1.
        images_per_second: of the training steps, rendering and teacher included, evaluation not.
    """

    best_accuracy: float
    best_epoch: int
    last_accuracy: float
    images_per_second: float


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
    """Train a fresh network; writes checkpoints and one JSON line of metrics an epoch as it goes.

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
        MismatchError: source and cache, or the two sources, do not belong together; or `out` holds an earlier
            training, and `force` is off.
        SourceError: an image cannot be read.
        OSError: `out` cannot be written.
    """
    if (options.distillation is None) != (cache is None and teacher is None):
        raise UsageError("a distillation loss needs a cache (or a live teacher), and cross-entropy takes none")
    if (cache is not None and (views is not None or teacher is not None)) or (cache is None and recipe is not None):
        raise UsageError("a cache brings its own views and its teacher; give either a cache or views")
    device = choose_device(options.device)
    for checked in (source, eval_source):
        check_source(checked)
        labels_of(checked)
    num_workers = options.num_workers
    if num_workers is None:
        num_workers = default_num_workers(source)
    if list(eval_source.classes) != list(source.classes):
        raise MismatchError(
            f"evaluation source {name_of(eval_source)} has {len(eval_source.classes)} classes, training source "
            f"{name_of(source)} {len(source.classes)}, or other names; both must be the same"
        )
    mean, std = normalization_of(source)
    loading = {
        "batch_size": options.batch_size,
        "seed": options.seed,
        "num_workers": num_workers,
        "device": device,
    }
    if cache is not None:
        assert options.distillation is not None
        cache.require(options.distillation)
        dataset = cache.dataset(
            source,
            temperature=options.distillation.temperature,
            strict_replay=strict_replay,
            recipe=recipe,
            size=options.size,
        )
        _refuse_mixed_labels(options, dataset.recipe)
        _LOG.info("%s", dataset.replay)
        if len(dataset) < cache.num_rows:
            _LOG.info("training on %d of the %d cached rows", len(dataset), cache.num_rows)
        batches = cached_batches(dataset, **loading)
        recipe, size = dataset.recipe, dataset.size
    else:
        views = views or Views()
        recipe = views.recipe if isinstance(views.recipe, Recipe) else open_recipe(views.recipe, *image_size(source))
        _refuse_mixed_labels(options, recipe)
        rendered = ViewRenderer(source, recipe, views.seed)[ViewRequest((0,), np.arange(1))][0].pixels.shape
        size = (rendered[2], rendered[3])
        if options.size is not None:
            recipe, size = recipe.at_size(size, options.size), (options.size, options.size)
        num_top = options.distillation.num_top if options.distillation else 0
        batches = rendered_batches(
            source,
            recipe,
            view_seed=views.seed,
            num_views=views.num_views,
            teacher=teacher,
            num_top=num_top,
            **loading,
        )
    eval_recipe = options.eval_recipe or recipe.evaluation(size)
    card = ModelCard(
        name=options.student, num_classes=len(source.classes), size=size, mean=mean, std=std, eval_recipe=eval_recipe
    )
    evaluator = Evaluator(eval_source, mean=mean, std=std, device=device, num_workers=num_workers, recipe=eval_recipe)
    torch.manual_seed(options.seed)
    model = build_model(options.student, card.num_classes).to(device)
    if device.type == "cuda":
        model = model.to(memory_format=torch.channels_last)
    _claim_folder(options)
    return _run(options, model, batches, len(source), evaluator, card, device)


def _refuse_mixed_labels(options: TrainOptions, recipe: Recipe) -> None:
    if recipe.mix is not None and options.distillation is not None and options.distillation.loss == "dkd":
        raise UsageError(f"dkd needs one label an image; recipe {recipe.name} mixes images: use kd, gdkd or gdkd3")


def _claim_folder(options: TrainOptions) -> None:
    if (options.out / "metrics.jsonl").exists() and not options.force:
        raise MismatchError(
            f"{options.out} holds an earlier training; name another --out, or add --force to replace it"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        (options.out / name).unlink(missing_ok=True)


def _run(
    options: TrainOptions,
    model: nn.Module,
    batches: Batches,
    num_images: int,
    evaluator: Evaluator,
    card: ModelCard,
    device: torch.device,
) -> TrainResult:
    optimizer = make_optimizer(options, model)
    schedule = make_schedule(options, optimizer)
    best, best_epoch, accuracy, seconds = -1.0, 0, 0.0, 0.0
    with (
        (options.out / "metrics.jsonl").open("w") as metrics,
        progress("train", options.epochs * num_images, "images") as advance,
    ):
        for epoch in range(options.epochs):
            start = time.monotonic()
            means = run_epoch(options, epoch, model, optimizer, batches(epoch), device, advance)
            elapsed = time.monotonic() - start
            seconds += elapsed
            lr = optimizer.param_groups[0]["lr"]
            schedule.step()
            evaluation = evaluator(model)
            accuracy = evaluation.accuracy
            line = {"epoch": epoch + 1, **means, "lr": lr, "accuracy": accuracy, "eval_loss": evaluation.loss}
            line["images_per_second"] = round(num_images / elapsed, 1)
            metrics.write(json.dumps(line) + "\n")
            metrics.flush()
            numbers = (epoch + 1, options.epochs, means["loss"], accuracy, num_images / elapsed)
            _LOG.info("epoch %d/%d  loss %.4f  accuracy %.4f  %.0f images/s", *numbers)
            evaluated = dataclasses.replace(card, accuracy=accuracy)
            if accuracy > best:
                best, best_epoch = accuracy, epoch + 1
                save_weights(model, evaluated, options.out / "best.safetensors")
            save_weights(model, evaluated, options.out / "last.safetensors")
    return TrainResult(
        best_accuracy=best,
        best_epoch=best_epoch,
        last_accuracy=accuracy,
        images_per_second=options.epochs * num_images / seconds,
    )
