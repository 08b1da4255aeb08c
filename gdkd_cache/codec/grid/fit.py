"""Fit the coding of one output to calibration rows, for a step."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gdkd_cache.codec.base import exact_top
from gdkd_cache.codec.fidelity import gradient_error
from gdkd_cache.codec.grid.blocks import CELLS, COSINES, COSINES_SCALE, split
from gdkd_cache.codec.grid.order import MOST_CELLS_A_BYTE, NUM_SEGMENTS, segments
from gdkd_cache.codec.grid.plane import MEAN_UNITS, Plane
from gdkd_cache.codec.grid.tables import BASIS_SCALE, MOST_COMPONENTS, GridTables
from gdkd_cache.codec.transform.patterns import ESCAPE, LOOKUP_SIZE, column_costs, group_columns, group_of
from gdkd_cache.codec.transform.quantise import sensitivity
from gdkd_cache.losses.base import Loss
from gdkd_cache.threads import one_thread

_LEAST_VARIANCE = 0.12  # of a number worth coding, in steps squared
_WIDE_DEVIATION = 12.0  # of a number that takes two digits, in steps
_PENALTY = 0.1
_ESCAPE_RATE = 0.001


@dataclass(frozen=True, kw_only=True, eq=False)
class GridStatistics:
    """What calibration rows say of one output, whatever the step.

    Attributes:
        logits: float32 [row, height, width, class].
        num_top: how many exact classes the codec shall keep.
        losses: what it shall serve best.
        mean: float64 [class], mean centred logits.
        basis: float64 [class, component], orthonormal, by falling variance over cells.
        variances: float64 [frequency, component], of a block's numbers, in logits squared.
        weight_scale: mean sensitivity.
    """

    logits: Tensor
    num_top: int
    losses: tuple[Loss, ...]
    mean: np.ndarray
    basis: np.ndarray
    variances: np.ndarray
    weight_scale: float


@one_thread()
def gather_statistics(logits: Tensor, *, num_top: int, losses: Sequence[Loss]) -> GridStatistics:
    """Means, the Karhunen-Loeve basis of cells, and the variances of blocks' numbers in it.

    Args:
        logits: float32 [row, height, width, class], at least one row.
        num_top: 1 <= num_top < class.
        losses: the declared losses.
    """
    num_classes = logits.shape[-1]
    mean = torch.zeros(num_classes, dtype=torch.float64)
    covariance = torch.zeros(num_classes, num_classes, dtype=torch.float64)
    weights, count = 0.0, logits[..., 0].numel()
    for row in logits:
        cells = row.flatten(0, 1)
        centred = (cells - cells.mean(-1, keepdim=True)).double()
        mean += centred.sum(0) / count
        covariance += centred.T @ centred / count
        top = exact_top(cells, num_top).classes
        weights += float(sensitivity(losses, cells, top[:, 0], top).double().mean(-1).sum()) / count
    covariance -= mean[:, None] * mean
    basis = torch.linalg.eigh(covariance)[1].flip(1)[:, : min(num_classes - 1, MOST_COMPONENTS)]
    # A basis vector's sign is arbitrary: fix it, for the same bytes from every run.
    signs = basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
    basis = basis * torch.where(signs == 0, 1, signs)
    cosines = torch.from_numpy(COSINES / COSINES_SCALE)
    variances = torch.zeros(CELLS, basis.shape[1], dtype=torch.float64)
    for row in logits:
        centred = (row - row.mean(-1, keepdim=True)).double() - mean
        variances += (cosines.T @ split(centred[None]) @ basis).square().mean(0) / len(logits)
    return GridStatistics(
        logits=logits,
        num_top=num_top,
        losses=tuple(losses),
        mean=mean.numpy(),
        basis=basis.numpy(),
        variances=variances.numpy(),
        weight_scale=max(weights, 1e-12),
    )


def fit_plane(statistics: GridStatistics, step: float, *, rows: int, passes: int = 2) -> Plane:
    """Fit the tables for one step: numbers worth coding, and cost models; a column a byte.

    Args:
        statistics: of the calibration rows.
        step: quantisation step in logits, above 0.
        rows: how many rows the cost models are made of.
        passes: how often these are made anew of what was chosen by them.
    """
    logits = statistics.logits[:: max(len(statistics.logits) // rows, 1)]
    _, height, width, _ = logits.shape
    variances = statistics.variances / step**2
    worth = variances > _LEAST_VARIANCE
    num_components = max(int(np.flatnonzero(worth.any(0)).max(initial=0)) + 1, 1)
    flat = variances[:, :num_components].ravel()
    order = np.argsort(-flat, kind="stable")
    coded = order[: max(int((flat > _LEAST_VARIANCE).sum()), 1)]
    num_wide = int((flat[coded] > _WIDE_DEVIATION**2).sum())
    num_columns = len(coded) + num_wide
    unit = step / (COSINES_SCALE * BASIS_SCALE)
    tables = GridTables(
        mean=np.clip(np.rint(statistics.mean / (MEAN_UNITS * unit)), -(2**31), 2**31 - 1).astype(np.int32),
        basis=np.rint(statistics.basis[:, :num_components] * BASIS_SCALE).astype(np.int8),
        coded=coded.astype(np.uint16),
        variances=np.maximum(flat[coded], _LEAST_VARIANCE).astype(np.float32),
        costs=np.full((num_columns, 3), 16, np.uint8),
        groups=np.ones(num_columns, np.uint8),
        rank_costs=np.tile(np.array([0, 64, 32], np.uint8), (NUM_SEGMENTS, statistics.num_top, 1)),
        rank_widths=np.ones(NUM_SEGMENTS, np.uint8),
    )
    plane = Plane(
        height=height,
        width=width,
        num_top=statistics.num_top,
        step=step,
        penalty=0.0,
        weight_scale=statistics.weight_scale,
        losses=statistics.losses,
        tables=tables,
    )
    # What a value costs depends on how often it is chosen, and the choice on what it costs: iterate.
    for _ in range(passes + 1):
        digits = plane.digits(plane.quantised(logits)).numpy()
        own = replace(plane.tables, costs=column_costs(digits, np.ones(num_columns, bool)))
        plane = replace(plane, penalty=_PENALTY * step * step, tables=own)
    return plane


def packed(plane: Plane, statistics: GridStatistics, *, rows: int) -> Plane:
    """The same coding with columns and cells merged into bytes; its reconstruction is the same."""
    logits = statistics.logits[:: max(len(statistics.logits) // rows, 1)]
    numbers = plane.quantised(logits)
    tables = replace(plane.tables, groups=group_columns(plane.tables.costs, plane.digits(numbers).numpy()))
    ranks = plane.ranks(numbers, logits)
    parts = [ranks[:, own.start : own.stop] for own in segments(plane.num_cells)]
    signed = np.zeros(plane.num_top, bool)
    costs = np.stack([column_costs(part.flatten(0, 1).numpy(), signed) for part in parts])
    widths = [_cells_a_byte(own, part) for own, part in zip(costs, parts, strict=True)]
    return replace(plane, tables=replace(tables, rank_costs=costs, rank_widths=np.array(widths, np.uint8)))


def _cells_a_byte(costs: np.ndarray, ranks: Tensor) -> int:
    """How many cells may share a byte with hardly any escaped: those of ranks [row, cell, rank]."""
    width = 1
    while width < MOST_CELLS_A_BYTE:
        group, wider = group_of(np.tile(costs, (width + 1, 1))), width + 1
        if group.lookup_size > LOOKUP_SIZE:
            break
        whole = ranks[:, : ranks.shape[1] // wider * wider].reshape(-1, wider * ranks.shape[2])
        if (group.encode(whole) == ESCAPE).double().mean() > _ESCAPE_RATE:
            break
        width = wider
    return width


def plane_error(plane: Plane, logits: Tensor) -> float:
    """The largest gradient error of the losses that a plane was fitted for, of rows that it was not fitted to.

    Args:
        plane: the coding.
        logits: float32 [row, height, width, class].
    """
    decoded, cells = plane.decoded(plane.quantised(logits), logits).flatten(0, 1), logits.flatten(0, 2)
    top = exact_top(cells, plane.num_top).classes
    return max(gradient_error(loss, cells, decoded, top[:, 0], top) for loss in plane.losses)
