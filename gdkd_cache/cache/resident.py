"""Columns as they lie in memory between batches: as they are stored, those that are sparse without their zeros."""

from typing import Protocol

import numpy as np


class ResidentColumn(Protocol):
    """A column [row, ...] of which some rows can be taken: an array, or one without its zeros."""

    @property
    def nbytes(self) -> int: ...

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray: ...


class SparseColumn:
    """An array [row, ...] that is zero nearly everywhere, held by where it is not."""

    def __init__(self, dense: np.ndarray) -> None:
        flat = dense.reshape(-1)
        self._shape = dense.shape[1:]
        self._width = int(np.prod(self._shape))
        self._at = np.flatnonzero(flat != 0)
        self._values = flat[self._at]

    @property
    def nbytes(self) -> int:
        return self._at.nbytes + self._values.nbytes

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """The given rows, int64 [batch], as they were: [batch, ...]."""
        begin, end = np.searchsorted(self._at, [rows * self._width, (rows + 1) * self._width])
        counts = end - begin
        entries = np.arange(counts.sum()) + np.repeat(begin - (counts.cumsum() - counts), counts)
        moved = np.repeat((np.arange(len(rows)) - rows) * self._width, counts)
        taken = np.zeros(len(rows) * self._width, self._values.dtype)
        taken[self._at[entries] + moved] = self._values[entries]
        return taken.reshape(len(rows), *self._shape)
