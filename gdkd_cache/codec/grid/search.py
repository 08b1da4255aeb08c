"""The coarsest steps at which a grid codec meets a gradient error: one for each output."""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from gdkd_cache.codec.base import Codec
from gdkd_cache.codec.dense import DenseCodec, DenseOptions
from gdkd_cache.codec.grid.codec import GridCodec, GridOptions
from gdkd_cache.codec.grid.fit import GridStatistics, fit_plane, gather_statistics, packed, plane_error
from gdkd_cache.codec.grid.plane import Plane

if TYPE_CHECKING:
    from gdkd_cache.codec.calibration import Calibration

_MARGIN = 0.98  # of the target on held-out rows
_CLOSE = 0.97
_STEPS = 7
_FITTED_ROWS = 32
_ROUGH_ROWS = 12
_LEAST = 1 / 1000  # of the logits' deviation: a step


def fit_to(calibration: "Calibration", options: GridOptions, fidelity: float) -> Codec:
    """`grid` at the step of the options or, without one, at the coarsest steps that meet a gradient error.

    Where no step of at least a thousandth of an output's deviation meets it, this is `dense`.
    """
    losses = calibration.request.losses
    num_top = options.k or max(1, *(loss.num_top for loss in losses))
    (logits, _), (held_out, _) = calibration.fitted_rows, calibration.held_out_rows
    planes: list[Plane] = []
    for own, unseen in zip(_outputs(logits, calibration), _outputs(held_out, calibration), strict=True):
        statistics = gather_statistics(own, num_top=num_top, losses=losses)
        step = options.step or _step(statistics, unseen, fidelity * _MARGIN)
        if not step:
            return DenseCodec.fit(calibration, DenseOptions(k=num_top), fidelity)
        planes.append(packed(fit_plane(statistics, step, rows=_FITTED_ROWS), statistics, rows=_FITTED_ROWS))
    return GridCodec(
        num_classes=calibration.num_classes, num_top=num_top, num_outputs=len(planes), planes=tuple(planes)
    )


def _outputs(logits: Tensor, calibration: "Calibration") -> list[Tensor]:
    """Logits [row, height, width, class] of each output."""
    return list(logits.unbind(1)) if calibration.outputs else [logits]


def _step(statistics: GridStatistics, unseen: Tensor, target: float) -> float:
    """The coarsest step that is found to meet an error on unseen rows; 0 where none does."""

    def error(step: float, rows: int, passes: int, unseen: Tensor) -> float:
        return plane_error(fit_plane(statistics, step, rows=rows, passes=passes), unseen)

    deviation = max(float(statistics.logits.std(-1).mean()), 1e-3)
    rough = partial(error, rows=_ROUGH_ROWS, passes=1, unseen=unseen[:: max(len(unseen) // _ROUGH_ROWS, 1)])
    near = _coarsest(rough, target, 3 * target * deviation, _LEAST * deviation, _STEPS)
    fine = partial(error, rows=_FITTED_ROWS, passes=2, unseen=unseen)
    return _coarsest(fine, target, near or deviation * target, _LEAST * deviation, 3)


def _coarsest(error_of: Callable[[float], float], target: float, start: float, least: float, tries: int) -> float:
    """The coarsest step whose error is found to be a little below the target: the error rises with it, smoothly."""
    step, best, seen = start, 0.0, list[tuple[float, float]]()
    for _ in range(tries):
        error = error_of(step)
        if error <= target:
            best = max(best, step)
            if error >= _CLOSE * target:
                break
        seen = sorted([*seen, (step, max(error, 1e-9))], key=lambda one: abs(math.log(one[1] / target)))[:2]
        power = 1.3
        if len(seen) == 2 and seen[0][0] != seen[1][0]:
            slope = math.log(seen[0][1] / seen[1][1]) / math.log(seen[0][0] / seen[1][0])
            power = 1 / min(max(slope, 0.3), 3.0)
        aim = target * (1 + _CLOSE) / 2
        step = seen[0][0] * min(max(aim / seen[0][1], 0.05), 20.0) ** power
        if step < least:
            break
    return best
