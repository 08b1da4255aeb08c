"""A training in a process of its own, below a limit of memory or without one.

python limited.py OUT LIMIT_MIB|0    # prints what it took, and its losses, as JSON
"""

import json
import sys
from pathlib import Path

import numpy as np
from torch import nn

from gdkd_cache.allocator import keep_memory
from gdkd_cache.data.source import ArraySource
from gdkd_cache.training.train import TrainOptions, train

_ROWS, _SIDE, _CLASSES = 192, 48, 10


def student(num_classes: int) -> nn.Sequential:
    """Some 8 MiB of activations an image of 48x48, and little to compute."""
    depth = [nn.GELU() for _ in range(12)]
    return nn.Sequential(nn.Conv2d(3, 64, 1), *depth, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))


def main(out: Path, limit: int) -> None:
    keep_memory()
    random = np.random.default_rng(0)
    source = ArraySource(
        name="noise",
        images=random.integers(0, 256, (_ROWS, 3, _SIDE, _SIDE), dtype=np.uint8),
        labels=random.integers(0, _CLASSES, _ROWS),
        keys=[str(row) for row in range(_ROWS)],
        classes=[str(label) for label in range(_CLASSES)],
    )
    train(
        TrainOptions(
            student="limited:student",
            epochs=3,
            lr=0.1,
            out=out,
            max_memory=f"{limit}MiB" if limit else None,
            num_workers=0,
        ),
        source,
        source,
    )
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    print(
        json.dumps(
            {
                "peak": max(line["memory_bytes"] for line in lines),
                "losses": [value for line in lines for value in (line["loss"], line["eval_loss"])],
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
