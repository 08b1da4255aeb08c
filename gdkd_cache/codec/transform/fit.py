"""Fit a transform codec's tables to calibration rows, for a step."""

import numpy as np
import torch

from gdkd_cache.codec.transform.codec import BASIS_SCALE, QUARTERS, VERSION, TransformCodec
from gdkd_cache.codec.transform.patterns import column_costs, group_columns
from gdkd_cache.codec.transform.statistics import Statistics
from gdkd_cache.codec.transform.tables import TransformTables, no_references

_LEAST_VARIANCE = 0.12  # of a component worth coding, in steps squared
_LEAST_OF_MANY = 0.06  # the same of many classes, whose rows have most of their error in what many components hold
_MANY_CLASSES = 256
TRUSTED_VARIANCE = 0.13
"""Least that the quantiser is told, in steps squared: to pull components further to 0 costs more than it saves."""
_PENALTY = 0.05
_PASSES = 2
_FITTED_VALUES = 2**21
_FEWEST_FITTED = 2048
_ENCODE_ROWS = 2048
_FREE_VARIANCE = 0.25
_MEAN_BITS = 2


def fit_transform(
    statistics: Statistics, step: float, *, most: int | None = None, group: bool = True
) -> TransformCodec:
    """Fit the tables for one step: components worth coding, class means that pay, cost models, groups of columns.

    Args:
        statistics: of the calibration rows.
        step: quantisation step in logits, above 0.
        most: components at most; None takes all that are worth their bytes in a row.
        group: merge columns into bytes; without it (which is faster) the reconstruction is the same.
    """
    num_classes, num_top = len(statistics.mean), statistics.num_top
    variances = statistics.variances / step**2
    worth = int((variances > (_LEAST_OF_MANY if num_classes > _MANY_CLASSES else _LEAST_VARIANCE)).sum())
    num_components = min(max(worth, 1), most or statistics.basis.shape[1], statistics.basis.shape[1])
    basis, variances = statistics.basis[:, :num_components], variances[:num_components]
    unit = step / (QUARTERS * BASIS_SCALE)
    class_means = np.rint(statistics.class_means[:, :num_components] / step * QUARTERS)
    spread = statistics.spread[:num_components] / step**2
    pays = _pay(class_means, variances, spread, statistics.stored_rows)
    means = np.zeros((num_classes, num_components))
    means[statistics.seen] = class_means * pays
    tables = {
        "basis": np.rint(basis * BASIS_SCALE).astype(np.int8),
        "mean": np.clip(np.rint(statistics.mean / unit), -(2**31), 2**31 - 1).astype(np.int32),
        "class_means": np.clip(means, -(2**15), 2**15 - 1).astype(np.int16),
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
            tables=TransformTables(**tables, costs=costs, groups=groups, **no_references()),
        )

    # What a value costs depends on how often it is chosen, and the choice on what it costs: iterate.
    symbols = _symbols(codec(0.0), statistics)
    for _ in range(_PASSES):
        costs = column_costs(symbols, signed)
        symbols = _symbols(codec(_PENALTY * step * step), statistics)
    costs = column_costs(symbols, signed)
    if group:
        groups = group_columns(costs, symbols)
    return codec(_PENALTY * step * step)


def _pay(class_means: np.ndarray, variances: np.ndarray, spread: np.ndarray, stored_rows: int) -> np.ndarray:
    """Of which components the class means save more bits, over all rows, than they take: bool [component].

    Args:
        class_means: [seen class, component], in quarter steps.
        variances, spread: [component], of the coefficients with and without them, in steps squared.
        stored_rows: how many rows share them.
    """
    saved = 0.5 * np.log2((spread + _FREE_VARIANCE) / (variances + _FREE_VARIANCE)) * stored_rows
    return saved > (np.log2(1 + np.sqrt(np.square(class_means).mean(0))) + _MEAN_BITS) * len(class_means)


def _symbols(codec: TransformCodec, statistics: Statistics) -> np.ndarray:
    """What is stored of the calibration rows, or of some thousands of these: int64 [row, column]."""
    wanted = max(_FITTED_VALUES // codec.num_classes, _FEWEST_FITTED)
    some = slice(None, None, -(-len(statistics.logits) // wanted))
    logits, labels = statistics.logits[some].split(_ENCODE_ROWS), statistics.labels[some].split(_ENCODE_ROWS)
    return torch.cat([codec.quantised(*part) for part in zip(logits, labels, strict=True)]).numpy()
