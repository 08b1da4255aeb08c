"""A training by hand, in a process of its own, below a limit of memory or without one.

python limited.py LIMIT_MIB|0 STEPS    # prints what it took, and its losses, as JSON
"""

import copy
import json
import sys

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gdkd_cache.allocator import keep_memory
from gdkd_cache.training.memory import find_accumulation, peak_memory

_BATCH = 64


def student() -> nn.Sequential:
    """Some 8 MiB of activations an image of 48x48, and little to compute."""
    torch.manual_seed(0)
    depth = [nn.GELU() for _ in range(12)]
    return nn.Sequential(nn.Conv2d(3, 64, 1), *depth, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, most: int) -> float:
    """Micro-batches of at most so many images, each weighted by its share of the rows."""
    total = 0.0
    optimizer.zero_grad()
    for some, theirs in zip(images.split(most), labels.split(most), strict=True):
        loss = F.cross_entropy(model(some), theirs) * len(some) / len(images)
        loss.backward()
        total += loss.item()
    optimizer.step()
    return total


def main(limit: int, steps: int) -> None:
    keep_memory()
    model = student()
    most, parts, expected = _BATCH, 1, 0
    if limit:
        trial = copy.deepcopy(model)
        trial_optimizer = optimizer_of(trial)

        def step(count: int) -> None:
            images, labels = torch.zeros(2 * count, 3, 48, 48), torch.zeros(2 * count, dtype=torch.int64)
            train_step(trial, trial_optimizer, images, labels, count)

        found = find_accumulation(step, _BATCH, limit * 2**20, torch.device("cpu"), batch_norm=False)
        most, parts, expected = found.images, found.parts, found.peak_bytes
        del trial, trial_optimizer
    optimizer = optimizer_of(model)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        images = torch.randn(_BATCH, 3, 48, 48, generator=generator)
        labels = torch.randint(10, (_BATCH,), generator=generator)
        losses.append(train_step(model, optimizer, images, labels, most))
    peak = peak_memory(torch.device("cpu"))["memory_bytes"]
    print(json.dumps({"peak": peak, "expected": expected, "parts": parts, "images": most, "losses": losses}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
