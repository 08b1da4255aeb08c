"""Trainings of a study: each in a folder of its own, and not run again where it is finished."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gdkd_cache.data.source import Source
from gdkd_cache.errors import MismatchError
from gdkd_cache.training.train import TrainOptions, train


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a training gave: top-1 in [0, 1] of the last epoch and of the best, and images a second of its steps."""

    last: float
    best: float
    images_per_second: float


def finished(folder: Path, epochs: int) -> Run | None:
    """The run of a folder; None where it has not all its epochs.

    Raises:
        MismatchError: it has more.
    """
    metrics = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    if len(lines) > epochs:
        raise MismatchError(f"{folder} holds a training of {len(lines)} epochs, not of {epochs}; name another --out")
    if len(lines) < epochs:
        return None
    accuracies = [line["accuracy"] for line in lines]
    return Run(
        last=accuracies[-1],
        best=max(accuracies),
        images_per_second=statistics.mean(line["images_per_second"] for line in lines),
    )


def run(options: TrainOptions, source: Source, eval_source: Source, **given: Any) -> Run:
    """Train, where that is not done yet; `given` goes to `train`."""
    done = finished(options.out, options.epochs)
    if done is None:
        train(replace(options, force=True), source, eval_source, **given)
        done = finished(options.out, options.epochs)
    assert done is not None
    return done


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation (of n - 1) in percent."""
    return f"{statistics.mean(values):.2%}" + (f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else "")
