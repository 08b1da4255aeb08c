"""Calibration rows, the codecs that are fitted to them, and the choice between these."""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numcodecs import Zstd
from torch import Tensor

from gdkd_cache.codec.base import Codec, CodecOptions
from gdkd_cache.codec.fidelity import ENCODE_ROWS, Fidelity, measure
from gdkd_cache.codec.registry import CODECS
from gdkd_cache.codec.request import CodecRequest

_CALIBRATION_VALUES = 2**28
_SAMPLE_ROWS = 4096
Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A fitted codec.

    Attributes:
        codec: the codec.
        fidelity: what `measure` says of it on held-out rows.
        bytes_per_view: of those rows' compressed columns; tables and metadata not included.
    """

    codec: Codec
    fidelity: Fidelity
    bytes_per_view: float

    @property
    def worst_error(self) -> float:
        """The largest gradient error over the declared losses that it serves; infinite when it serves none."""
        return max(self.fidelity.gradient_error.values(), default=math.inf)


def calibration_rows(num_rows: int, num_classes: int) -> int:
    """How many rows to calibrate on: the larger of 4096 and 40 a class, at most all, and at most 1 GiB of logits."""
    return min(num_rows, max(4096, 40 * num_classes), max(_CALIBRATION_VALUES // num_classes, 1))


class Calibration:
    """Calibration rows, and the codecs that can be fitted to them.

    Every fourth row is held out: codecs are fitted to the others and measured on these.

    Args:
        request: what is asked for.
        logits: float [row, class], finite; `calibration_rows` of view 0.
        labels: int64 [row].
        stored_rows: how many rows times views share the codec's tables, for comparing sizes.

    Attributes:
        fitted: logits float32 [row, class] and labels int64 [row] to fit to.

    Raises:
        UsageError: a declared loss, or a number of exact classes, that needs more classes than there are.
    """

    def __init__(self, request: CodecRequest, logits: Tensor, labels: Tensor, *, stored_rows: int) -> None:
        request.check(logits.shape[-1])
        self.request = request
        self.num_rows, self.num_classes = logits.shape
        self._stored_rows = stored_rows
        logits = logits.float().cpu()
        labels = labels.cpu()
        held_out = torch.arange(len(logits)) % 4 == 3
        if not held_out.any():
            held_out[:] = True  # too few rows to spare any: measured on what it was fitted to
        fitted = ~held_out if len(logits) >= 4 else held_out
        self._held_out = logits[held_out][:_SAMPLE_ROWS], labels[held_out][:_SAMPLE_ROWS]
        self.fitted = logits[fitted], labels[fitted]
        self._shared: dict[Hashable, Any] = {}

    def sample(self) -> tuple[Tensor, Tensor]:
        """Held-out logits [row, class] and labels [row], at most as many as are encoded at once."""
        return self._held_out[0][:ENCODE_ROWS], self._held_out[1][:ENCODE_ROWS]

    def num_top(self, options: CodecOptions) -> int:
        """How many exact classes a codec of these options shall keep."""
        return self.request.top_classes(options, self.num_classes)

    def shared(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What several fits have in common, made once."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def error(self, codec: Codec) -> float:
        """The largest gradient error of the declared losses, on held-out rows."""
        return max(measure(codec, *self._held_out, self.request.losses)[0].gradient_error.values())

    def choose(self) -> Choice:
        """The codec that the request names; for `auto`, the smallest that meets the fidelity, or the most faithful."""
        named = self.request.codec()
        if named is not None:
            return self.fit(*named)
        choices = [self.fit(CODECS.load(name)) for name in CODECS]
        good = [choice for choice in choices if self._meets(choice)]
        return min(good, key=self.total_bytes) if good else min(choices, key=lambda choice: choice.worst_error)

    def fit(self, kind: type[Codec], options: CodecOptions | None = None, fidelity: float | None = None) -> Choice:
        """Fit a codec of some kind, and measure it.

        Args:
            kind: its class.
            options: of its class's `Options`; None takes their defaults.
            fidelity: the gradient error to meet, for one that searches; None takes the request's.
        """
        codec = kind.fit(self, options or kind.Options(), fidelity or self.request.fidelity)
        logits, labels = self._held_out
        measured, columns = measure(codec, logits, labels, self.request.losses)
        size = sum(
            _compressed(np.ascontiguousarray(part))
            for column in columns.values()
            for part in column.cpu().numpy().reshape(len(logits), -1).T
        )
        return Choice(codec=codec, fidelity=measured, bytes_per_view=size / len(logits))

    def total_bytes(self, choice: Choice) -> float:
        """Bytes a view with the codec's tables spread over all stored rows."""
        tables = choice.codec.tables_bytes()
        return choice.bytes_per_view + (_compressed(tables) / self._stored_rows if tables.size else 0)

    def _meets(self, choice: Choice) -> bool:
        served = choice.fidelity.gradient_error
        return len(served) == len({*map(str, self.request.losses)}) and choice.worst_error <= self.request.fidelity


def _compressed(data: np.ndarray) -> int:
    return len(Zstd(level=19).encode(data))
