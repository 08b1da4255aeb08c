"""Fit a transform codec's tables to calibration rows, for a step."""

from dataclasses import replace

import numpy as np
import torch

from gdkd_cache.codec.transform.codec import MANY_CLASSES, QUARTERS, VERSION, TransformCodec
from gdkd_cache.codec.transform.patterns import column_costs, group_columns
from gdkd_cache.codec.transform.statistics import Statistics
from gdkd_cache.codec.transform.tables import BASIS_SCALE, MOST_SCALE, TransformTables, no_references

_LEAST_VARIANCE = 0.12  # of a component worth coding, in steps squared
_LEAST_OF_MANY = 0.06  # the same of many classes, whose rows have most of their error in what many components hold
TRUSTED_VARIANCE = 0.13
"""Least that the quantiser is told, in steps squared: to pull components further to 0 costs more than it saves."""
_PENALTY = 0.05
_PASSES = 2
_FITTED_VALUES = 2**21
_FEWEST_FITTED = 2048
_MOST_FITTED = 2**23  # values: of more, a row takes tens of milliseconds
_ROUGH_ROWS = 1024
_ENCODE_ROWS = 2048
_FREE_VARIANCE = 0.25
_MEAN_BITS = 2
_SCALE_GAIN = 10  # rounding at 127 cost 1.1 B a row, and a bit more of each number an eighth of their count
_MOST_PARTS = 64
"""How many steps of the values a step is, at most: above it, more and more corrections take more than a byte."""


def fit_transform(
    statistics: Statistics, step: float, value_step: float, *, most: int | None = None, rough: bool = False
) -> TransformCodec:
    """Fit the tables for one step: components worth coding, class means that pay, cost models; a column a byte.

    Args:
        statistics: of the calibration rows.
        step: quantisation step in logits, above 0.
        value_step: that of the top classes' values where there are more than 256 classes; at least a 64th of the step.
        most: components at most; None takes all that are worth their bytes in a row.
        rough: cost models of few rows, at a fifth of the time; errors come out within some hundredths the same.
    """
    num_classes, num_top = len(statistics.mean), statistics.num_top
    variances = statistics.variances / step**2
    worth = int((variances > (_LEAST_OF_MANY if num_classes > MANY_CLASSES else _LEAST_VARIANCE)).sum())
    num_components = min(max(worth, 1), most or statistics.basis.shape[1], statistics.basis.shape[1])
    basis, variances = statistics.basis[:, :num_components], variances[:num_components]
    scale = _basis_scale(basis.size, statistics.stored_rows)
    unit = step / (QUARTERS * scale)
    value_units = None
    if num_classes > MANY_CLASSES and value_step < step:
        value_units = max(round(value_step / unit), -(-QUARTERS * scale // _MOST_PARTS))
    class_means = np.rint(statistics.class_means[:, :num_components] / step * QUARTERS)
    spread = statistics.spread[:num_components] / step**2
    pays = _pay(class_means, variances, spread, statistics.stored_rows)
    means = np.zeros((num_classes, num_components), np.int16)
    means[statistics.seen] = np.clip(class_means * pays, -(2**15), 2**15 - 1)
    rounded = basis * scale
    np.rint(rounded, out=rounded)
    tables = {
        "basis": rounded.astype(np.int8 if scale == BASIS_SCALE else np.int16),
        "mean": np.clip(np.rint(statistics.mean / unit), -(2**31), 2**31 - 1).astype(np.int32),
        "class_means": means,
        "variances": np.maximum(np.where(pays, variances, spread), TRUSTED_VARIANCE).astype(np.float32),
    }
    num_columns = num_components + 2 * num_top
    signed = np.zeros(num_columns, bool)
    signed[:num_components] = True
    signed[num_components + num_top - 1 : -1] = True
    costs, groups = np.full((num_columns, 3), 16, np.uint8), np.ones(num_columns, np.uint8)

    def codec(penalty: float) -> TransformCodec:
        return TransformCodec(
            num_classes=num_classes,
            num_top=num_top,
            step=step,
            penalty=penalty,
            weight_scale=statistics.weight_scale,
            losses=statistics.losses,
            version=VERSION,
            basis_scale=scale,
            value_units=value_units,
            tables=TransformTables(**tables, costs=costs, groups=groups, **no_references()),
        )

    # What a value costs depends on how often it is chosen, and the choice on what it costs: iterate.
    rows = min(_ROUGH_ROWS, _rows(num_classes) // 2) if rough else _rows(num_classes)
    costs = column_costs(_symbols(codec(0.0), statistics, rows), signed)
    for _ in range(1 if rough else _PASSES):
        costs = column_costs(_symbols(codec(_PENALTY * step * step), statistics, rows), signed)
    return codec(_PENALTY * step * step)


def grouped(codec: TransformCodec, statistics: Statistics) -> TransformCodec:
    """The same codec with columns merged into bytes; its reconstruction is the same."""
    groups = group_columns(codec.tables.costs, _symbols(codec, statistics, _rows(codec.num_classes)))
    return replace(codec, tables=replace(codec.tables, groups=groups))


def _rows(num_classes: int) -> int:
    return max(_FITTED_VALUES // num_classes, min(_FEWEST_FITTED, _MOST_FITTED // num_classes))


def _basis_scale(size: int, stored_rows: int) -> int:
    """A scale at which the basis's rounding costs the rows about as much as a bit more of each number costs the cache.

    Args:
        size: how many numbers the basis has.
        stored_rows: how many rows share it.
    """
    scale = BASIS_SCALE
    while scale < MOST_SCALE and stored_rows * _SCALE_GAIN * BASIS_SCALE**2 > size * (2 * scale) ** 2:
        scale *= 2
    return scale


def _pay(class_means: np.ndarray, variances: np.ndarray, spread: np.ndarray, stored_rows: int) -> np.ndarray:
    """Of which components the class means save more bits, over all rows, than they take: bool [component].

    Args:
        class_means: [seen class, component], in quarter steps.
        variances, spread: [component], of the coefficients with and without them, in steps squared.
        stored_rows: how many rows share them.
    """
    saved = 0.5 * np.log2((spread + _FREE_VARIANCE) / (variances + _FREE_VARIANCE)) * stored_rows
    return saved > (np.log2(1 + np.sqrt(np.square(class_means).mean(0))) + _MEAN_BITS) * len(class_means)


def _symbols(codec: TransformCodec, statistics: Statistics, rows: int) -> np.ndarray:
    """What is stored of the calibration rows, or of so many of these: int64 [row, column]."""
    some = slice(None, None, -(-len(statistics.logits) // rows))
    logits, labels = statistics.logits[some].split(_ENCODE_ROWS), statistics.labels[some].split(_ENCODE_ROWS)
    return torch.cat([codec.quantised(*part) for part in zip(logits, labels, strict=True)]).numpy()
