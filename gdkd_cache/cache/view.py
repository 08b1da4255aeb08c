"""One view of a cache: its columns resident as they are stored, decoded a batch at a time."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gdkd_cache.cache.references import references_of
from gdkd_cache.cache.resident import ResidentColumn, SparseColumn
from gdkd_cache.codec.base import Decoded, References, TopK
from gdkd_cache.errors import CacheError, UsageError
from gdkd_cache.store.layout import PROBE
from gdkd_cache.store.reader import CacheReader

Rows = Sequence[int] | np.ndarray | Tensor


class View:
    """The teacher's logits for one view of every row. Made by `Cache.view`.

    Attributes:
        number: which view.
        nbytes: what it takes in memory.
    """

    def __init__(self, cache: CacheReader, number: int) -> None:
        # It may run in a thread beside the training: numpy, and for references torch, both in that thread alone.
        self.number = number
        self._codec, self._cells, self._labels = cache.codec, cache.manifest.identity.cells, cache.labels
        columns = cache.columns(cache.layouts, number)
        _check(cache, number, columns)
        columns.pop(PROBE, None)  # checked with the view that it belongs to, and not needed again
        self._references = None
        if self._codec.num_references:
            self._references = references_of(cache, partial(_check, cache)).of_view(number)
        self._columns: dict[str, ResidentColumn] = {
            name: SparseColumn(column) if cache.layouts[name].column.sparse else column
            for name, column in columns.items()
        }
        self.nbytes = sum(column.nbytes for column in self._columns.values())
        self.nbytes += 0 if self._references is None else self._references.nbytes

    def _gather(self, rows: Rows, device: str | torch.device) -> tuple[dict[str, Tensor], Tensor, References | None]:
        """Columns and labels of some rows, and what these are predicted from."""
        index = np.asarray(rows, dtype=np.int64)
        if index.ndim != 1 or (index.size and not (index.min() >= 0 and index.max() < len(self._labels))):
            raise UsageError(f"rows must be a list of cache rows in 0..{len(self._labels) - 1}")
        columns = {
            name: torch.from_numpy(column[index]).to(device, non_blocking=True)
            for name, column in self._columns.items()
        }
        references = None if self._references is None else self._references.take(index, device)
        return columns, torch.from_numpy(self._labels[index]).to(device, non_blocking=True), references

    def logits(
        self, rows: Rows, device: str | torch.device = "cpu", *, temperature: float | None = None
    ) -> Float[Tensor, "batch *grid class"]:
        """Reconstructed teacher logits, up to a constant per row (or cell).

        Args:
            rows: [batch] cache rows (positions in `Cache.keys`), each in [0, num_rows).
            device: where to decode.
            temperature: for a codec that reconstructs the tail for one declared temperature (`topk`); None means
                the first declared.

        Returns:
            float32 [batch, class]; of rows of several cells, [batch, height, width, class], or [batch, output, height,
            width, class] where several outputs of a network said something.

        Raises:
            UsageError: a row out of range, or a temperature that is not declared.
        """
        return self.decode(rows, device, temperature=temperature).logits

    def topk(self, rows: Rows, device: str | torch.device = "cpu") -> TopK:
        """The teacher's largest logits in exact rank order: values float32 and classes int64, [batch, k].

        Of rows of several cells, they are [batch, height, width, k], or [batch, output, height, width, k].

        Raises:
            UsageError: a row out of range.
        """
        return self.decode(rows, device).top

    def decode(self, rows: Rows, device: str | torch.device = "cpu", *, temperature: float | None = None) -> Decoded:
        """`logits` and `topk` of the same rows at once."""
        if torch.device(device).type == "mps":  # which lacks the float64 that codecs count in
            logits, top = self.decode(rows, "cpu", temperature=temperature)
            return Decoded(logits.to(device), TopK(*(part.to(device) for part in top)))
        columns, labels, references = self._gather(rows, device)
        return self._cells.decode(self._codec, columns, labels, temperature, references)


def _check(cache: CacheReader, number: int, columns: Mapping[str, np.ndarray]) -> None:
    """Refuse columns of a view that no encoder writes.

    Raises:
        CacheError: it names the view.
    """
    for name, column in columns.items():
        fill = cache.layouts[name].column.fill
        _check_written(f"{cache.path}: view {number}: {name}", column, fill, name == PROBE)
    own = {name: column for name, column in columns.items() if name != PROBE}
    codec = cache.codec
    try:
        cache.manifest.identity.cells.check(codec, own, cache.labels, min(number, codec.num_references))
    except CacheError as error:
        raise CacheError(f"{cache.path}: view {number}: {error}") from None


def _check_written(what: str, column: np.ndarray, fill: int | float, whole_rows: bool) -> None:
    """Refuse sentinels; with `whole_rows`, where any single value may be the sentinel, rows of nothing else."""
    unwritten = np.isnan(column) if np.isnan(fill) else column == fill
    if whole_rows:
        unwritten = unwritten.all(-1)
    if unwritten.any():
        row = int(np.argwhere(unwritten)[0][0])
        raise CacheError(f"{what} holds no data for row {row}: the cache is damaged; copy it again")
