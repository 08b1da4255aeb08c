"""Metrics over the epochs of several trainings."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def metric(lines: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """What each epoch says of a metric: float64 [epoch], NaN where it says nothing, or no finite number."""
    return np.array([_number(line.get(name)) for line in lines], np.float64)


def band(values: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (n - 1) over trainings, epoch by epoch, of those that say something.

    Args:
        values: float64 [epoch] of each training, of any length; NaN for nothing.

    Returns:
        Two float64 [epoch] of the longest; NaN where nobody says anything, a deviation also where only one does.
    """
    length = max(map(len, values), default=0)
    table = np.full((len(values), length), np.nan)
    for row, series in zip(table, values, strict=True):
        row[: len(series)] = series
    known = np.isfinite(table)
    count = known.sum(0)
    mean = np.where(known, table, 0).sum(0) / np.where(count, count, np.nan)
    squares = np.where(known, (table - mean) ** 2, 0).sum(0)
    return mean, np.sqrt(squares / np.where(count > 1, count - 1, np.nan))


def spread_evenly(count: int, most: int) -> np.ndarray:
    """At most so many of 0..count-1, the first and the last among them: int64, rising."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _number(value: object) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        return float(value) if is_number and math.isfinite(value) else math.nan  # pyright: ignore[reportArgumentType]
    except OverflowError:  # of a whole number beyond float64
        return math.nan
