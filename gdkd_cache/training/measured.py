"""What is measured at the start of a training, and stays when it goes on: its threads, and the parts of a batch."""

import copy
import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import distributed, nn

from gdkd_cache.cache.batch import TeacherBatch
from gdkd_cache.device import laid_out
from gdkd_cache.training.amounts import parse_bytes
from gdkd_cache.training.batches import Batch
from gdkd_cache.training.distributed import rank_and_size
from gdkd_cache.training.feeds import Feed
from gdkd_cache.training.mask_task import MaskTask
from gdkd_cache.training.memory import find_accumulation, normalizes_batches
from gdkd_cache.training.options import TrainOptions
from gdkd_cache.training.records.facts import versions
from gdkd_cache.training.state import State
from gdkd_cache.training.step import Stepper
from gdkd_cache.training.task import Task
from gdkd_cache.training.threads import choose_threads

_LOG = logging.getLogger(__name__)


def measured(
    options: TrainOptions,
    before: Mapping[str, Any],
    task: Task,
    model: nn.Module,
    num_classes: int,
    feed: Feed,
    memory_format: str,
    device: torch.device,
) -> dict[str, Any]:
    """What a training is run with beside its options, as plain JSON.

    Args:
        options, task: of the training.
        before: what this gave when the training began, which is kept; empty for one that begins.
        model, num_classes: the student; it is left as it is.
        feed: what it is fed with: the size of its images, and a live teacher.
        memory_format, device: of the images.

    Returns:
        `threads`, `parts` of a batch, `ranks` and the `versions` of the libraries.
    """
    ranks, now = rank_and_size()[1], versions()
    if before and before.get("versions") != now:
        _LOG.warning("the training began with %s, and goes on with %s", _listed(before.get("versions")), _listed(now))
    parts = options.accumulate
    if options.max_memory is not None:
        parts = before.get("parts") if before.get("ranks") == ranks else None
        if parts is None:
            parts = _parts(options, task, model, num_classes, feed, memory_format, device)
    threads = options.threads or before.get("threads")
    if threads is None:
        threads = torch.get_num_threads()
        if device.type == "cpu":
            images = -(-options.batch_size // (ranks * int(parts)))
            threads = choose_threads(_trial_step(model, images, feed, memory_format))
    return {"threads": int(threads), "parts": int(parts), "ranks": ranks, "versions": now}


def _trial_step(
    model: nn.Module,
    batch_size: int,
    feed: Feed,
    memory_format: str,
) -> Callable[[], None]:
    trial = copy.deepcopy(model).train()
    pixels = torch.zeros(batch_size, 3, *feed.size, dtype=torch.uint8)

    def step() -> None:
        if feed.teacher is not None:
            feed.teacher(pixels)
        outputs = trial(laid_out(pixels.float(), memory_format))
        parts = outputs.values() if isinstance(outputs, Mapping) else [outputs]
        torch.stack([part.square().mean() for part in parts]).sum().backward()

    return step


def _parts(
    options: TrainOptions,
    task: Task,
    model: nn.Module,
    num_classes: int,
    feed: Feed,
    memory_format: str,
    device: torch.device,
) -> int:
    """Into how many parts a batch is split so that a step stays below --max-memory; of several ranks, the most."""
    assert options.max_memory is not None
    ranks = rank_and_size()[1]
    trial = copy.deepcopy(model).train()
    state = State.begin(options, trial, device, 1)
    num_top = task.distillation.num_top if task.distillation else 0
    step = Stepper(
        options=options, task=task, trained=trial, device=device, memory_format=memory_format, parts=2, check=False
    )

    def of_images(number: int) -> None:
        # Two parts of so many: gradients of the first lie in memory while the network runs on the second.
        said = None
        if task.distillation is not None:
            top = torch.arange(num_top, device=device).expand(2 * number, *feed.cells.grid, num_top)
            logits = torch.zeros(2 * number, *feed.cells.grid, num_classes, device=device)
            said = TeacherBatch(logits, top, torch.arange(2 * number), 0)
        images = torch.zeros(2 * number, 3, *feed.size, device=device)
        label = feed.size if isinstance(task, MaskTask) else ()
        labels = torch.zeros(2 * number, *label, dtype=torch.long, device=device)
        step(state, Batch(images, labels, said, np.arange(2 * number)))

    found = find_accumulation(
        of_images,
        options.batch_size // ranks,
        parse_bytes("max_memory", options.max_memory),
        device,
        batch_norm=normalizes_batches(model),
    )
    parts = torch.tensor(found.parts, device=device)
    if ranks > 1:
        distributed.all_reduce(parts, distributed.ReduceOp.MAX)
    return int(parts)


def _listed(versions: Any) -> str:
    return ", ".join(f"{name} {version}" for name, version in dict(versions or {}).items()) or "others"
