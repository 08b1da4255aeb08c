"""Several small integers in one byte, so that a byte-wise entropy coder comes close to their entropy.

Huffman codes spend at least one bit a symbol, and most columns of small integers hold less. So neighbouring columns
are merged: one byte names one of the 254 cheapest patterns of their values, under a two-parameter cost model a column.
The tables are made from integers alone, the same on every machine. What no pattern names is escaped: the byte says
so, and the values lie in the `escape` column, as wide as they need to be.
"""

from collections.abc import Iterator
from functools import cached_property, lru_cache
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from gdkd_cache.codec.base import check_rows

ESCAPE = 254
"""The byte that says: this row's values are in the escape column. 255 is the sentinel of unwritten data."""

_KEPT = 1024
LOOKUP_SIZE = 2**20
_LONGEST = 20
_ESCAPE_RATE = 0.001


def column_costs(symbols: np.ndarray, signed: np.ndarray) -> np.ndarray:
    """Cost model of each column, fitted to its values: bits(0) = 0, bits(v) = first + more * (abs(v) - 1).

    Args:
        symbols: int [row, column].
        signed: bool [column]; unsigned columns hold no negative values.

    Returns:
        uint8 [column, 3]: signed, first and more, the last two in 1/16 bit.
    """
    size = np.abs(symbols.astype(np.int64))
    zero = ((size == 0).sum(0) + 1.0) / (len(size) + 2.0)
    count = (size > 0).sum(0) + 0.1
    decay = np.clip(1 - count / (size.sum(0) + 0.2), 1e-3, 0.999)
    first = np.log2(zero / ((1 - zero) / np.where(signed, 2, 1) * (1 - decay)))
    sixteenths = [np.clip(np.rint(16 * first), 0, 255), np.clip(np.rint(-16 * np.log2(decay)), 1, 255)]
    return np.stack([signed, *sixteenths], 1).astype(np.uint8)


def _pattern_table(costs: np.ndarray) -> np.ndarray:
    """The cheapest patterns of these columns, cheapest first: int16 [pattern <= 254, column]."""
    table, total = np.zeros((1, 0), np.int16), np.zeros(1, np.int64)
    for signed, first, more in costs.astype(np.int64):
        size = np.arange(1, 128 if signed else 255)
        values = np.concatenate([[0], np.stack([size, -size], 1).ravel() if signed else size])
        bits = np.where(values == 0, 0, first + more * (np.abs(values) - 1))
        sums = (total[:, None] + bits).ravel()
        best = np.argsort(sums, kind="stable")[:_KEPT]
        table = np.concatenate([table[best // len(values)], values[best % len(values), None].astype(np.int16)], 1)
        total = sums[best]
    return table[:ESCAPE]


class PatternGroup:
    """The patterns of one group of neighbouring columns, and the table that finds them.

    Attributes:
        num_patterns: at most 254; what a byte may name.
        width: columns.
        table: int16 [256, column], the patterns, zeros where there is none.
        lookup_size: entries of the table that `encode` needs.
    """

    def __init__(self, costs: np.ndarray) -> None:
        table = _pattern_table(costs)
        self.num_patterns, self.width = table.shape
        low, extent = table.min(0), table.max(0) - table.min(0) + 1
        self.lookup_size = int(np.prod(extent.astype(object)))
        self.table = torch.zeros(256, self.width, dtype=torch.int16)
        self.table[: len(table)] = torch.from_numpy(table)
        self._low, self._extent = torch.from_numpy(low.astype(np.int64)), torch.from_numpy(extent.astype(np.int64))

    @cached_property
    def _lookup(self) -> Tensor:
        # Made when it is needed: a reader never does.
        lookup = torch.full((self.lookup_size,), ESCAPE, dtype=torch.uint8)
        patterns = self.table[: self.num_patterns].long()
        lookup[self._index(patterns)] = torch.arange(self.num_patterns, dtype=torch.uint8)
        return lookup

    def _index(self, values: Tensor) -> Tensor:
        radix = torch.cat([self._extent.new_ones(1), self._extent[:-1].cumprod(0)])
        return ((values - self._low.to(values.device)) * radix.to(values.device)).sum(-1)

    def encode(self, values: Tensor) -> Tensor:
        """int64 [row, column] -> uint8 [row]; `ESCAPE` where no pattern fits."""
        low = self._low.to(values.device)
        inside = ((values >= low) & (values < low + self._extent.to(values.device))).all(-1)
        found = self._lookup.to(values.device)[self._index(torch.where(inside[:, None], values, low))]
        return found.masked_fill(~inside, ESCAPE)


def group_of(costs: np.ndarray) -> PatternGroup:
    """The patterns of columns of such costs, uint8 [column, 3]."""
    return _group(costs.tobytes())


@lru_cache(maxsize=256)
def _group(costs: bytes) -> PatternGroup:
    return PatternGroup(np.frombuffer(costs, np.uint8).reshape(-1, 3))


class Patterns:
    """The patterns of all columns: whole numbers [row, column] to bytes [row, group] and back.

    Args:
        costs: uint8 [column, 3].
        sizes: uint8 [group], the groups' columns, whose sum is all columns.
    """

    def __init__(self, costs: np.ndarray, sizes: np.ndarray) -> None:
        parts = np.split(costs, np.cumsum(sizes.astype(np.int64))[:-1])
        self._groups = [group_of(part) for part in parts]
        self._sizes = sizes.astype(np.int64)
        self._runs: dict[torch.device, list[tuple[Tensor, Tensor]]] = {}

    def __len__(self) -> int:
        return len(self._groups)

    def pack(self, symbols: Tensor) -> tuple[Tensor, Tensor]:
        """int64 [row, column] -> packed uint8 [row, group], and escape int16 [row, column]: zero but where escaped."""
        escape = torch.zeros(symbols.shape, dtype=torch.int16, device=symbols.device)
        packed, start = [], 0
        for group in self._groups:
            columns = slice(start, start + group.width)
            packed.append(group.encode(symbols[:, columns]))
            escaped = packed[-1] == ESCAPE
            escape[escaped, columns] = symbols[escaped, columns].to(torch.int16)
            start += group.width
        return torch.stack(packed, -1), escape

    def unpack(self, packed: Tensor, escape: Tensor) -> Tensor:
        """The inverse of `pack`, of bytes and escapes that `check` lets through: int16 [row, column]."""
        device = packed.device
        if device not in self._runs:
            self._runs[device] = [(table.to(device), starts.to(device)) for table, starts in self._tables()]
        parts, first = [], 0
        for table, starts in self._runs[device]:
            names = packed[:, first : first + len(starts)].int() + starts
            parts.append(table.index_select(0, names.flatten()).view(len(packed), len(starts) * table.shape[1]))
            first += len(starts)
        return torch.cat(parts, -1).add_(escape)  # what is escaped has a pattern of zeros

    def _tables(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each run of groups of one width: their tables, one after the other, and where each begins in them.

        Groups of one width are looked up at once: one large gather costs a fraction of many small ones.
        """
        for _, run in groupby(self._groups, lambda group: group.width):
            tables = [group.table for group in run]
            yield torch.cat(tables), 256 * torch.arange(len(tables), dtype=torch.int32)

    def check(self, packed: np.ndarray, escape: np.ndarray, least: np.ndarray, most: np.ndarray) -> None:
        """Refuse what `pack` gives for no numbers of these ranges.

        Args:
            packed, escape: as `pack` gives them.
            least, most: int [column], the ranges, which include 0.

        Raises:
            CacheError: a byte that names no pattern, or one out of range; or an escape that is out of range or has no
                byte that says so.
        """
        ends = self._sizes.cumsum()
        for number, (group, end) in enumerate(zip(self._groups, ends.tolist(), strict=True)):
            columns = slice(end - group.width, end)
            table = group.table[: group.num_patterns].numpy()
            good = np.zeros(256, bool)
            good[: len(table)] = ((table >= least[columns]) & (table <= most[columns])).all(-1)
            good[ESCAPE] = True
            names, seen = packed[:, number], np.zeros(256, bool)
            seen[names] = True
            if (seen & ~good).any():
                check_rows(good[names], "names no pattern of its codec")
        rows, columns = np.divmod(np.flatnonzero(escape.reshape(-1) != 0), escape.shape[1])
        values = escape[rows, columns]
        escaped = packed[rows, np.repeat(np.arange(len(self)), self._sizes)[columns]] == ESCAPE
        for good, fault in (
            (escaped, "holds a value where none is escaped"),
            ((values >= least[columns]) & (values <= most[columns]), "holds a rank or a code beyond the classes"),
        ):
            if not good.all():
                check_rows(~np.isin(np.arange(len(packed)), rows[~good]), fault)


def group_columns(costs: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    """How many neighbouring columns to merge into each byte: uint8 [group].

    Greedy: a group grows while at most 0.1% of the given rows fall outside its patterns.

    Args:
        costs: uint8 [column, 3].
        symbols: int [row, column], typical rows.
    """
    values = torch.from_numpy(symbols.astype(np.int64))
    sizes: list[int] = []
    start = 0
    while start < len(costs):
        width = 1
        while width < _LONGEST and start + width < len(costs):
            group = group_of(costs[start : start + width + 1])
            if group.lookup_size > LOOKUP_SIZE:
                break
            if (group.encode(values[:, start : start + width + 1]) == ESCAPE).double().mean() > _ESCAPE_RATE:
                break
            width += 1
        sizes.append(width)
        start += width
    return np.array(sizes, np.uint8)
