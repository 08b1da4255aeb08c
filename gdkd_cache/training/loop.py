"""Epochs of optimisation, what they leave on disk, and the optimizer and learning-rate schedule that they use."""

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR

from gdkd_cache.device import autocast
from gdkd_cache.models.weights import ModelCard, save_weights
from gdkd_cache.progress import progress
from gdkd_cache.training.batches import Batch, Batches
from gdkd_cache.training.distributed import average_buffers, parallel, rank_and_size, sum_over_ranks
from gdkd_cache.training.evaluate import Evaluator
from gdkd_cache.training.options import TrainOptions

METRICS_NAME = "metrics.jsonl"
_LOG = logging.getLogger(__name__)


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


def run_epochs(
    options: TrainOptions,
    model: nn.Module,
    batches: Batches,
    num_images: int,
    evaluator: Evaluator,
    card: ModelCard,
    device: torch.device,
) -> TrainResult:
    """Train and evaluate epoch by epoch; the first rank writes checkpoints and metrics."""
    rank, world_size = rank_and_size()
    trained = parallel(model, device)
    optimizer = make_optimizer(options, model)
    schedule = make_schedule(options, optimizer)
    best, best_epoch, accuracy, seconds = -1.0, 0, 0.0, 0.0
    if not rank:
        _clear_folder(options.out)
    with progress("train", options.epochs * num_images, "images") as advance:
        for epoch in range(options.epochs):
            start = time.monotonic()
            # Progress counts the images of all ranks, which advance alike.
            means = run_epoch(
                options, epoch, trained, optimizer, batches(epoch), device, lambda amount: advance(amount * world_size)
            )
            average_buffers(model)
            elapsed = time.monotonic() - start
            seconds += elapsed
            lr = optimizer.param_groups[0]["lr"]
            schedule.step()
            evaluation = evaluator(model)
            accuracy = evaluation.accuracy
            is_best = accuracy > best
            if is_best:
                best, best_epoch = accuracy, epoch + 1
            if rank:
                continue
            line = {"epoch": epoch + 1, **means, "lr": lr, "accuracy": accuracy, "eval_loss": evaluation.loss}
            line["images_per_second"] = round(num_images / elapsed, 1)
            with (options.out / METRICS_NAME).open("a") as metrics:
                metrics.write(json.dumps(line) + "\n")
            numbers = (epoch + 1, options.epochs, means["loss"], accuracy, num_images / elapsed)
            _LOG.info("epoch %d/%d  loss %.4f  accuracy %.4f  %.0f images/s", *numbers)
            evaluated = dataclasses.replace(card, accuracy=accuracy)
            for name in ("best", "last") if is_best else ("last",):
                save_weights(model, evaluated, options.out / f"{name}.safetensors")
    return TrainResult(
        best_accuracy=best,
        best_epoch=best_epoch,
        last_accuracy=accuracy,
        images_per_second=options.epochs * num_images / seconds,
    )


def _clear_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("best.safetensors", "best.json", "last.safetensors", "last.json", METRICS_NAME):
        (folder / name).unlink(missing_ok=True)
    (folder / METRICS_NAME).touch()


def run_epoch(
    options: TrainOptions,
    epoch: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Batch],
    device: torch.device,
    advance: Callable[[int], None],
) -> dict[str, float]:
    """One pass over the data, or over this rank's part; returns the means of the loss and its parts over all ranks."""
    ramp = min((epoch + 1) / options.warmup, 1.0) if options.warmup else 1.0
    model.train()
    # Summed on the device: reading a value each step would make the CPU wait for the GPU.
    sums = torch.zeros(4, device=device)
    one = torch.ones((), device=device)
    for images, labels, teacher in batches:
        if device.type == "cuda":
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast(options.precision, device):
            logits = model(images)
        logits = logits.float()
        ce = nn.functional.cross_entropy(logits, labels)
        distillation = torch.zeros((), device=device)
        if options.distillation is not None:
            assert teacher is not None
            distillation = options.distillation(logits, teacher.logits, labels, teacher.top)
        loss = options.ce_weight * ce + options.distillation_weight * ramp * distillation
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        sums += torch.stack([loss.detach(), ce.detach(), distillation.detach(), one]) * len(labels)
        advance(len(labels))
    *totals, seen = sum_over_ranks(sums).tolist()
    loss_mean, ce_mean, distillation_mean = (total / seen for total in totals)
    means = {"loss": loss_mean, "ce": ce_mean}
    return means | ({} if options.distillation is None else {"distillation": distillation_mean})


def make_optimizer(options: TrainOptions, model: nn.Module) -> torch.optim.Optimizer:
    if options.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    return torch.optim.SGD(model.parameters(), lr=options.lr, momentum=0.9, weight_decay=options.weight_decay)


def make_schedule(options: TrainOptions, optimizer: torch.optim.Optimizer) -> LRScheduler:
    schedules: list[LRScheduler] = []
    if options.milestones:
        schedules.append(MultiStepLR(optimizer, list(options.milestones), gamma=0.1))
    else:
        schedules.append(CosineAnnealingLR(optimizer, options.epochs))
    if options.lr_warmup:
        schedules.append(LinearLR(optimizer, 1 / (options.lr_warmup + 1), total_iters=options.lr_warmup))
    return ChainedScheduler(schedules)
