"""What a training leaves on disk."""

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from gdkd_cache.errors import MismatchError
from gdkd_cache.models.card import ModelCard
from gdkd_cache.models.weights import save_weights

_METRICS = "metrics.jsonl"
_WEIGHTS = ("best.safetensors", "last.safetensors")
_CARDS = ("best.json", "last.json")  # beside the weights of 0.1.0
_STAGED = re.compile(r"\.epoch-\w{8}\.partial")
_PARTIAL = re.compile(r"(best|last)\.(safetensors|json)\.\d+\.partial")  # of 0.1.0


class RunFolder:
    """The folder of one training: `best.safetensors`, `last.safetensors` and, the mark of a training, `metrics.jsonl`.

    An earlier training there stays whole until the first epoch of this one is on disk. While files of two trainings
    lie side by side there is no `metrics.jsonl`; so a kill leaves the one, or the other, or none.
    """

    def __init__(self, path: Path, *, force: bool) -> None:
        """Look at the folder; nothing is written yet.

        Raises:
            MismatchError: it holds an earlier training, and `force` is off; or something else is in the way.
        """
        if path.exists() and not path.is_dir():
            raise MismatchError(f"{path} is no folder; name another --out")
        for file in (path / name for name in (*_WEIGHTS, *_CARDS, _METRICS)):
            if file.exists() and not file.is_file():
                raise MismatchError(f"{file} is no plain file; remove it, or name another --out")
        if (path / _METRICS).exists() and not force:
            raise MismatchError(f"{path} holds an earlier training; name another --out, or add --force to replace it")
        self._path, self._force = path, force
        self._metrics = b""

    def begin(self) -> None:
        """Make it, without what trainings that were killed in the midst of writing left there.

        Raises:
            OSError: it cannot be written.
        """
        with self._telling():
            self._path.mkdir(parents=True, exist_ok=True)
            for path in self._path.iterdir():
                if _STAGED.fullmatch(path.name):
                    shutil.rmtree(path, ignore_errors=True)
                elif _PARTIAL.fullmatch(path.name):
                    path.unlink(missing_ok=True)
            with self._staged():
                pass

    def write(self, line: Mapping[str, int | float], model: nn.Module, card: ModelCard, *, is_best: bool) -> None:
        """Keep an epoch's weights and, when they are there, its line of metrics.

        Raises:
            OSError: they cannot be written; what was there stays.
            MismatchError: another training has written there meanwhile.
        """
        metrics = self._metrics + json.dumps(line, allow_nan=False).encode() + b"\n"
        evaluated = dataclasses.replace(card, accuracy=line["accuracy"])
        with self._telling(), self._staged() as staged:
            for name in _WEIGHTS if is_best else _WEIGHTS[1:]:
                save_weights(model, evaluated, staged / name)
            (staged / _METRICS).write_bytes(metrics)
            self._require_own()
            if not self._metrics:
                for name in (_METRICS, *_CARDS):
                    (self._path / name).unlink(missing_ok=True)
            for made in sorted(staged.iterdir(), key=lambda path: path.name == _METRICS):
                made.replace(self._path / made.name)
        self._metrics = metrics

    def _require_own(self) -> None:
        path = self._path / _METRICS
        found = path.read_bytes() if path.exists() else b""
        if found != self._metrics and (self._metrics or not self._force):
            raise MismatchError(f"another training has written to {self._path} meanwhile; name another --out")

    @contextmanager
    def _staged(self) -> Iterator[Path]:
        """A folder for files until all of an epoch are whole."""
        with TemporaryDirectory(prefix=".epoch-", suffix=".partial", dir=self._path) as staged:
            yield Path(staged)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Have errors of the disk name this folder: a full one names no file, or one that was never to stay."""
        try:
            yield
        except OSError as error:
            error.filename = str(self._path)
            raise
