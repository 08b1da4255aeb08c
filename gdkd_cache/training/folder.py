"""What a training leaves on disk."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from gdkd_cache.errors import MismatchError
from gdkd_cache.models.weights import ModelCard, save_weights

_METRICS = "metrics.jsonl"


class RunFolder:
    """The folder of one training: `best.safetensors`, `last.safetensors`, with their cards, and `metrics.jsonl`."""

    def __init__(self, path: Path, *, force: bool) -> None:
        """Look at the folder; nothing is written yet.

        Raises:
            MismatchError: it holds an earlier training, and `force` is off.
        """
        if (path / _METRICS).exists() and not force:
            raise MismatchError(f"{path} holds an earlier training; name another --out, or add --force to replace it")
        self._path = path

    def clear(self) -> None:
        """Make it, without what an earlier training left there."""
        self._path.mkdir(parents=True, exist_ok=True)
        for name in ("best.safetensors", "best.json", "last.safetensors", "last.json", _METRICS):
            (self._path / name).unlink(missing_ok=True)
        (self._path / _METRICS).touch()

    def write(self, line: Mapping[str, int | float], model: nn.Module, card: ModelCard, *, is_best: bool) -> None:
        """Add an epoch's line of metrics, then keep its weights."""
        with (self._path / _METRICS).open("a") as metrics:
            metrics.write(json.dumps(line) + "\n")
        evaluated = dataclasses.replace(card, accuracy=line["accuracy"])
        for name in ("best", "last") if is_best else ("last",):
            save_weights(model, evaluated, self._path / f"{name}.safetensors")
