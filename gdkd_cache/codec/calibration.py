"""Calibration rows, the codecs that are fitted to them, and the choice between these."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeVar

import numpy as np
import torch
from numcodecs import Zstd
from torch import Tensor

from gdkd_cache.codec.base import Codec, CodecOptions, coded, labels_of_cells
from gdkd_cache.codec.fidelity import Fidelity, encoded_at_once, measure
from gdkd_cache.codec.registry import CODECS
from gdkd_cache.codec.request import CodecRequest
from gdkd_cache.codec.views import SampledViews
from gdkd_cache.errors import UsageError

_CALIBRATION_VALUES = 2**27
_GRID_VALUES = 2**26
_GRIDS = 256
_FITTED_CELLS = 2**15
_MEASURED_CELLS = 2**18
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


def calibration_rows(num_rows: int, num_classes: int, num_cells: int = 1) -> int:
    """How many rows to calibrate on: the larger of 4096 and 40 a class, at most all, and at most 512 MiB of logits.

    Of rows of several cells 256 are enough, and at most 1/4 GiB.
    """
    if num_cells > 1:
        return min(num_rows, _GRIDS, max(_GRID_VALUES // (num_classes * num_cells), 4))
    return min(num_rows, max(4096, 40 * num_classes), max(_CALIBRATION_VALUES // num_classes, 1))


def calibration_views(num_rows: int, num_classes: int, num_views: int, num_cells: int = 1) -> int:
    """How many views, the first ones, to calibrate on: more than one where there are fewer than 16 rows a class.

    Of rows of several cells, more than one where these are fewer than 256.

    Args:
        num_rows: calibration rows.
        num_classes: of the logits.
        num_views: there are at most.
        num_cells: of a row.
    """
    values = _CALIBRATION_VALUES if num_cells == 1 else _GRID_VALUES
    affordable = max(values // (num_classes * num_cells * max(num_rows, 1)), 1)
    wanted = _ROWS_A_CLASS * num_classes if num_cells == 1 else _GRIDS
    return min(num_views, affordable, max(-(-wanted // max(num_rows, 1)), 1))


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
        logits: float [row, *grid, class] or [view, row, *grid, class], finite; `calibration_rows` of view 0, or of the
            first `calibration_views`. The grid is none, (height, width) or, where outputs have names, (output, height,
            width).
        labels: int64 [row], or [row, height, width] where each place has one, class ids or `NO_LABEL`.
        stored_rows: how many rows times views share the codec's tables, for comparing sizes.
        views: the first views of some of the rows, every fourth of which is one that is held out; None where no view
            shall be predicted from others.
        outputs: the names of a network's several outputs.

    Attributes:
        fitted: logits float32 [row, class] and labels int64 [row], `coded`, to fit to, of all views; of rows of several
            cells, some of these.
        fitted_rows, held_out_rows: of rows of several cells, logits float32 [row, *grid, class] and labels of whole
            rows to fit to, and of others.
        num_fitted: how many rows of a view these are.
        num_rows, num_classes: of the logits, all views counted.
        grid, outputs: of a row.
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
        outputs: Sequence[str] = (),
    ) -> None:
        request.check(logits.shape[-1])
        self.request = request
        self.num_classes = logits.shape[-1]
        self.stored_rows = stored_rows
        self.grid = () if logits.ndim <= 3 else tuple(logits.shape[-4 if outputs else -3 : -1])
        self.outputs = tuple(outputs)
        logits = logits.float().cpu().reshape(-1, len(labels), *self.grid, self.num_classes)
        labels = labels.cpu()
        self.num_rows = logits.shape[0] * logits.shape[1]
        held_out = torch.arange(len(labels)) % 4 == 3
        if not held_out.any():
            held_out[:] = True  # too few rows to spare any: measured on what it was fitted to
        fitted = ~held_out if len(labels) >= 4 else held_out
        least, most = _MEASURED_ROWS
        measured = min(max(_MEASURED_VALUES // self.num_classes, least), most, _MOST_MEASURED // self.num_classes)
        self._labels = labels[fitted], labels[held_out]
        self.fitted_rows, others = (_of_rows(logits, coded(labels), rows) for rows in (fitted, held_out))
        if self.grid:
            self.held_out_rows = _first(others, max(_MEASURED_CELLS // prod(self.grid), 1))
            self._cells = _some_cells(*self.fitted_rows, _FITTED_CELLS)
            self._held_out = _some_cells(*others, measured)
            self.fitted = self._cells[0].flatten(0, 1), labels_of_cells(self._cells[1], self._cells[0].shape[1:2])
        else:
            self.fitted, self._held_out = self.fitted_rows, _first(others, measured)
        self._all_views, self.views, self._held_out_views = views, None, None
        if views is not None:
            apart = torch.arange(len(views.labels)) % 4 == 3
            self.views, self._held_out_views = views.of(~apart), views.of(apart)
        self.num_fitted, self._num_held_out = int(fitted.sum()), int((held_out & ~fitted).sum())
        self._shared: dict[Hashable, Any] = {}
        self._last: tuple[Codec, tuple[Fidelity, dict[str, Tensor]]] | None = None

    @property
    def labelled(self) -> tuple[Tensor, Tensor]:
        """Logits [row, class] and labels [row] of the first view: of rows that are fitted to, then of held-out ones.

        Of rows of several cells, these are cells of the first output.
        """
        parts = (self.fitted, self._held_out)
        if self.grid:
            parts = [
                (logits[:, 0], labels.view(len(labels), -1)[:, 0]) for logits, labels in (self._cells, self._held_out)
            ]
        else:
            numbers = (self.num_fitted, self._num_held_out)
            parts = [
                (logits[:number], labels[: len(logits[:number])])
                for (logits, _), labels, number in zip(parts, self._labels, numbers, strict=True)
            ]
        logits, labels = zip(*parts, strict=True)
        return torch.cat(logits), torch.cat(labels)

    def sample(self, codec: Codec) -> tuple[Tensor, Tensor]:
        """Held-out logits and labels as a codec takes them, at most as many rows or cells as are encoded at once."""
        logits, labels = self._measured_on(codec)
        if self.grid and not codec.whole_rows:
            logits, labels = logits.flatten(0, 1), labels_of_cells(labels, tuple(logits.shape[1:2]))
        return _first((logits, labels), encoded_at_once(logits.shape[1:-1], logits.shape[-1]))

    def cells_of(self, codec: Codec) -> int:
        """How many of what a codec sees as a row one row of the cache is."""
        return 1 if codec.whole_rows else prod(self.grid)

    def _measured_on(self, codec: Codec) -> tuple[Tensor, Tensor]:
        """Held-out logits and labels to measure a codec on: whole rows, or [cell, output, class] of some cells."""
        return self.held_out_rows if codec.whole_rows else self._held_out

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
        logits, labels = _first(self._measured_on(codec), rows)
        fidelity, _ = measure(codec, logits, labels, self.request.losses, outputs=self.outputs)
        return max(fidelity.gradient_error.values())

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
            return measure(codec, *self._measured_on(codec), self.request.losses, outputs=self.outputs)
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

    @property
    def codecs(self) -> list[str]:
        """The registry's codecs that can hold such rows."""
        return [name for name in CODECS if self.grid or not CODECS.load(name).whole_rows]

    def choose(self) -> Choice:
        """The codec that the request names; for `auto`, the smallest that meets the fidelity, or the most faithful."""
        named = self.request.codec()
        if named is not None:
            return self.fit(*named)
        choices = [self.fit(CODECS.load(name)) for name in self.codecs]
        good = [choice for choice in choices if self._meets(choice)]
        return min(good, key=self.total_bytes) if good else min(choices, key=lambda choice: choice.worst_error)

    def fit(self, kind: type[Codec], options: CodecOptions | None = None, fidelity: float | None = None) -> Choice:
        """Fit a codec of some kind, and measure it.

        Args:
            kind: its class.
            options: of its class's `Options`; None takes their defaults.
            fidelity: the gradient error to meet, for one that searches; None takes the request's.

        Raises:
            UsageError: it sees whole rows, and these have one cell.
        """
        if kind.whole_rows and not self.grid:
            raise UsageError(
                f"codec {CODECS.name_of(kind)} is of rows of several cells, as images with masks have; use transform"
            )
        return self.choice(kind.fit(self, options or kind.Options(), fidelity or self.request.fidelity))

    def choice(self, codec: Codec) -> Choice:
        """Measure a codec that was fitted to these rows."""
        measured, columns = self._measure(codec)
        size = self.bytes_over_views(codec) if codec.num_references else self.cells_of(codec) * _size(columns)
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
        asked = len({*map(str, self.request.losses)}) * max(len(self.outputs), 1)
        return len(served) == asked and choice.worst_error <= self.request.fidelity


def _of_rows(logits: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [view * row, ...] and labels of some rows, bool [row], of all views."""
    return logits[:, rows].flatten(0, 1), labels[rows].repeat(len(logits), *(1,) * (labels.ndim - 1))


def _first(part: tuple[Tensor, Tensor], number: int) -> tuple[Tensor, Tensor]:
    return part[0][:number].clone(), part[1][:number]  # the others need not stay in memory


def _some_cells(logits: Tensor, labels: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """At most so many places of rows of several cells, spread evenly: logits [place, output, class].

    With one output where these have no axis. Labels are [place] where rows have one, and else [place, output].
    """
    outputs = logits if logits.ndim == 5 else logits[:, None]
    rows, num_outputs, height, width, _ = outputs.shape
    total = rows * height * width
    chosen = torch.arange(min(number, total)) * total // min(number, total)
    row, y, x = chosen // (height * width), chosen // width % height, chosen % width
    theirs = labels[row] if labels.ndim == 1 else labels[row, y, x][:, None].repeat(1, num_outputs)
    return outputs[row, :, y, x], theirs


def _size(columns: Mapping[str, Tensor]) -> float:
    """Bytes a row of encoded columns, each component of their first axis compressed on its own."""
    arrays = [column.cpu().numpy() for column in columns.values()]
    parts = (
        part for array in arrays for part in array.reshape(len(array), *(array.shape[1:2] or (1,)), -1).swapaxes(0, 1)
    )
    return sum(_compressed(np.ascontiguousarray(part.T)) for part in parts) / len(arrays[0])


def _compressed(data: np.ndarray) -> int:
    return len(Zstd(level=19).encode(data))
