"""Calibration rows, the codecs that are fitted to them, and the choice between these."""

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numcodecs import Zstd
from torch import Tensor

from gdkd_cache.codec.base import Codec, CodecOptions
from gdkd_cache.codec.fidelity import ENCODE_ROWS, Fidelity, measure
from gdkd_cache.codec.registry import CODECS
from gdkd_cache.codec.request import CodecRequest
from gdkd_cache.codec.views import SampledViews
from gdkd_cache.errors import UsageError

_CALIBRATION_VALUES = 2**27
_MEASURED_VALUES = 2**21
_MEASURED_ROWS = (1024, 4096)
_MOST_MEASURED = 2**23  # values: what is measured takes tens of copies of them
_ROWS_A_CLASS = 16
_SAMPLED_ROWS = 2048
_FEWEST_SAMPLED = 512
_LATER_VIEWS = 2
_REFERENCE_BYTES = 2**31
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
    """How many rows to calibrate on: the larger of 4096 and 40 a class, at most all, and at most 512 MiB of logits."""
    return min(num_rows, max(4096, 40 * num_classes), max(_CALIBRATION_VALUES // num_classes, 1))


def calibration_views(num_rows: int, num_classes: int, num_views: int) -> int:
    """How many views, the first ones, to calibrate on: more than one where there are fewer than 16 rows a class.

    Args:
        num_rows: calibration rows.
        num_classes: of the logits.
        num_views: there are at most.
    """
    affordable = max(_CALIBRATION_VALUES // (num_classes * max(num_rows, 1)), 1)
    return min(num_views, affordable, max(-(-_ROWS_A_CLASS * num_classes // max(num_rows, 1)), 1))


def sampled_views(
    request: CodecRequest, num_rows: int, num_views: int, unpredictable: str | None = None
) -> tuple[int, int]:
    """How many views, of how many of the calibration rows, codecs are fitted to that predict views from others.

    Where nobody asks for references, they must have a chance to pay: half of the views are others at least, and the
    sample is a twentieth of all views at most.

    Args:
        request: what is asked for.
        num_rows: calibration rows.
        num_views: views of the cache.
        unpredictable: why no view can be predicted from others; None where they can.

    Returns:
        Both numbers, 0 where views are not predicted.

    Raises:
        UsageError: as many references are asked for as there are views, or more; or some where none can be.
    """
    named = request.codec()
    rows = min(num_rows, _SAMPLED_ROWS)
    specs = [(kind, kind.Options()) for kind in map(CODECS.load, CODECS)] if named is None else [named]
    asked = {number for kind, options in specs for number in kind.reference_candidates(options)}
    if len(asked) == 1:
        (number,) = asked
        if unpredictable:
            raise UsageError(f"codec {request.spec} cannot predict views from the first ones: {unpredictable}")
        if number >= num_views:
            raise UsageError(
                f"codec {request.spec} predicts views from the first {number}, and there are {num_views} views; ask "
                "for fewer references, or more views"
            )
        return min(number + _LATER_VIEWS, num_views), rows
    if unpredictable:
        return 0, 0
    for number in sorted(asked, reverse=True):
        few = num_rows * num_views // 20 // (number + _LATER_VIEWS)
        if 2 * number <= num_views and few >= min(num_rows, _FEWEST_SAMPLED):
            return number + _LATER_VIEWS, min(rows, few)
    return 0, 0


def sampled_rows(num_rows: int, wanted: int) -> np.ndarray:
    """Some of the calibration rows, with every fourth of all rows still every fourth of these: int64 [row]."""
    blocks = np.arange(num_rows) // 4
    return np.flatnonzero(blocks % max(num_rows // max(wanted, 1), 1) == 0)


class Calibration:
    """Calibration rows, and the codecs that can be fitted to them.

    Every fourth row is held out, in all views: codecs are fitted to the others and measured on these, which are other
    images.

    Args:
        request: what is asked for.
        logits: float [row, class] or [view, row, class], finite; `calibration_rows` of view 0, or of the first
            `calibration_views`.
        labels: int64 [row].
        stored_rows: how many rows times views share the codec's tables, for comparing sizes.
        views: the first views of some of the rows, every fourth of which is one that is held out; None where no view
            shall be predicted from others.

    Attributes:
        fitted: logits float32 [row, class] and labels int64 [row] to fit to, of all views.
        num_fitted: how many rows of a view these are.
        num_rows, num_classes: of the logits, all views counted.
        stored_rows: how many rows times views share the codec's tables.
        views: the views of those rows of them that are not held out.

    Raises:
        UsageError: a declared loss, or a number of exact classes, that needs more classes than there are.
    """

    def __init__(
        self,
        request: CodecRequest,
        logits: Tensor,
        labels: Tensor,
        *,
        stored_rows: int,
        views: SampledViews | None = None,
    ) -> None:
        request.check(logits.shape[-1])
        self.request = request
        self.num_classes = logits.shape[-1]
        self.stored_rows = stored_rows
        logits, labels = logits.float().cpu().reshape(-1, len(labels), self.num_classes), labels.cpu()
        self.num_rows = logits[..., 0].numel()
        held_out = torch.arange(len(labels)) % 4 == 3
        if not held_out.any():
            held_out[:] = True  # too few rows to spare any: measured on what it was fitted to
        fitted = ~held_out if len(labels) >= 4 else held_out
        least, most = _MEASURED_ROWS
        measured = min(max(_MEASURED_VALUES // self.num_classes, least), most, _MOST_MEASURED // self.num_classes)
        some, theirs = _of_rows(logits, labels, held_out)
        self._held_out = some[:measured].clone(), theirs[:measured]
        self.fitted = _of_rows(logits, labels, fitted)
        self._all_views, self.views, self._held_out_views = views, None, None
        if views is not None:
            apart = torch.arange(len(views.labels)) % 4 == 3
            self.views, self._held_out_views = views.of(~apart), views.of(apart)
        self.num_fitted, self._num_held_out = int(fitted.sum()), int((held_out & ~fitted).sum())
        self._shared: dict[Hashable, Any] = {}
        self._last: tuple[Codec, tuple[Fidelity, dict[str, Tensor]]] | None = None

    @property
    def labelled(self) -> tuple[Tensor, Tensor]:
        """Logits [row, class] and labels [row] of the first view: of rows that are fitted to, then of held-out ones."""
        numbers = (self.num_fitted, self._num_held_out)
        parts = [
            (logits[:number], labels[:number])
            for (logits, labels), number in zip((self.fitted, self._held_out), numbers, strict=True)
        ]
        logits, labels = zip(*parts, strict=True)
        return torch.cat(logits), torch.cat(labels)

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

    def error(self, codec: Codec, rows: int | None = None) -> float:
        """The largest gradient error of the declared losses, on held-out rows: all, or so many where there are more."""
        if rows is None:
            return max(self._measure(codec)[0].gradient_error.values())
        logits, labels = self._held_out
        return max(measure(codec, logits[:rows], labels[:rows], self.request.losses)[0].gradient_error.values())

    def _measure(self, codec: Codec) -> tuple[Fidelity, dict[str, Tensor]]:
        """What a codec loses on held-out rows, and their columns; the last codec's are remembered."""
        if self._last is None or self._last[0] is not codec:
            self._last = codec, self._measured(codec)
        return self._last[1]

    def _measured(self, codec: Codec) -> tuple[Fidelity, dict[str, Tensor]]:
        """What a codec loses on held-out rows, and their columns.

        Where views predict others: of a later one, or of the first, whichever loses more.
        """
        if not codec.num_references:
            return measure(codec, *self._held_out, self.request.losses)
        views = self._held_out_views
        assert views is not None
        *_, (_, references) = views.encoded(codec)
        logits = views.logits[codec.num_references]
        first, _ = measure(codec, views.logits[0], views.labels, self.request.losses)
        later, columns = measure(codec, logits, views.labels, self.request.losses, references)
        worst = {loss: max(error, first.gradient_error[loss]) for loss, error in later.gradient_error.items()}
        return replace(later, gradient_error=worst), columns

    def bytes_over_views(self, codec: Codec) -> float:
        """Bytes a view of a codec's columns, over all views of the sampled rows; tables not included."""
        views = self._all_views
        assert views is not None
        *first, later = (_size(columns) for columns, _ in views.encoded(codec))
        return (sum(first) + (views.num_views - len(first)) * later) / views.num_views

    def fits_memory(self, codec: Codec) -> bool:
        """Whether what its references say of all rows takes at most 2 GiB, as readers hold it."""
        assert self.views is not None
        rows = self.stored_rows / self.views.num_views
        return rows * codec.num_references * codec.num_predicted <= _REFERENCE_BYTES

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
        return self.choice(kind.fit(self, options or kind.Options(), fidelity or self.request.fidelity))

    def choice(self, codec: Codec) -> Choice:
        """Measure a codec that was fitted to these rows."""
        measured, columns = self._measure(codec)
        size = self.bytes_over_views(codec) if codec.num_references else _size(columns)
        return Choice(codec=codec, fidelity=measured, bytes_per_view=size)

    def total_bytes(self, choice: Choice) -> float:
        """Bytes a view with the codec's tables spread over all stored rows."""
        return choice.bytes_per_view + self.table_bytes(choice.codec)

    def table_bytes(self, codec: Codec) -> float:
        """A view's share of the codec's tables."""
        tables = codec.tables_bytes()
        return _compressed(tables) / self.stored_rows if tables.size else 0.0

    def _meets(self, choice: Choice) -> bool:
        served = choice.fidelity.gradient_error
        return len(served) == len({*map(str, self.request.losses)}) and choice.worst_error <= self.request.fidelity


def _of_rows(logits: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [view * row, class] and labels of some rows, bool [row], of all views."""
    return logits[:, rows].flatten(0, 1), labels[rows].repeat(len(logits))


def _size(columns: Mapping[str, Tensor]) -> float:
    """Bytes a row of encoded columns, each component compressed on its own."""
    parts = (part for column in columns.values() for part in column.cpu().numpy().reshape(len(column), -1).T)
    return sum(_compressed(np.ascontiguousarray(part)) for part in parts) / len(next(iter(columns.values())))


def _compressed(data: np.ndarray) -> int:
    return len(Zstd(level=19).encode(data))
