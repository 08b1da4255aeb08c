"""One epoch of optimisation, and the optimizer and learning-rate schedule that it uses."""

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR

from gdkd_cache.pipeline.batches import Batch
from gdkd_cache.pipeline.device import autocast
from gdkd_cache.pipeline.train_options import TrainOptions


def run_epoch(
    options: TrainOptions,
    epoch: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Batch],
    device: torch.device,
    advance: Callable[[int], None],
) -> dict[str, float]:
    """One pass over the data; returns the mean of the loss and its parts."""
    ramp = min((epoch + 1) / options.warmup, 1.0) if options.warmup else 1.0
    model.train()
    # Summed on the device: reading a value each step would make the CPU wait for the GPU.
    sums = torch.zeros(3, device=device)
    seen = 0
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
        sums += torch.stack([loss.detach(), ce.detach(), distillation.detach()]) * len(labels)
        seen += len(labels)
        advance(len(labels))
    loss_mean, ce_mean, distillation_mean = (sums / seen).tolist()
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
