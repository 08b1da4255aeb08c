"""The exact top classes of cells: ranks in the reconstruction, those of cells of doubt first.

Most cells' top classes are those of the reconstruction, in its order: ranks of 0. Where they are not, the
reconstruction hardly tells classes apart, which the decoder sees as well. So a row's cells are taken in the order of
the least gap between scores that follow each other down to the (k+1)th, and cut into segments, each with cost models of
its own: the first ones hold nearly all ranks that are not 0, the last ones hardly take a bit a cell. Some cells share a
byte.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from gdkd_cache.codec.base import check_rows
from gdkd_cache.codec.transform.head import largest
from gdkd_cache.codec.transform.patterns import ESCAPE, PatternGroup, group_of

NUM_SEGMENTS = 16
MOST_CELLS_A_BYTE = 8


def by_doubt(scores: Tensor, num_top: int) -> Tensor:
    """Each row's cells in the order of doubt, equal ones as they lie: int64 [row, cell].

    Args:
        scores: whole float64 [row, cell, class], the reconstruction.
        num_top: k.
    """
    best = largest(scores.flatten(0, 1).clone(), num_top + 1).view(*scores.shape[:2], num_top + 1)
    gaps = (best[..., :-1] - best[..., 1:]).amin(-1)
    return gaps.argsort(dim=-1, stable=True)


def segments(num_cells: int) -> list[range]:
    """Which places in the order each segment has: about as many each."""
    return [
        range(number * num_cells // NUM_SEGMENTS, (number + 1) * num_cells // NUM_SEGMENTS)
        for number in range(NUM_SEGMENTS)
    ]


class Segments:
    """The segments of a row's cells, and the patterns that bytes name in each.

    Args:
        costs: uint8 [segment, rank, 3], the cost models of patterns.py.
        widths: uint8 [segment], cells a byte.
        num_cells: of a row.
    """

    def __init__(self, costs: np.ndarray, widths: np.ndarray, num_cells: int) -> None:
        self._num_top = costs.shape[1]
        self._parts: list[tuple[int, int, int, PatternGroup]] = []
        for cells, width, own in zip(segments(num_cells), widths.tolist(), costs, strict=True):
            if cells:
                self._parts.append((cells.start, cells.stop, width, group_of(np.tile(own, (width, 1)))))
        self._tables: dict[torch.device, list[Tensor]] = {}

    def __len__(self) -> int:
        """Bytes a row."""
        return sum(-(-(last - first) // width) for first, last, width, _ in self._parts)

    def _bytes(self) -> Iterator[tuple[slice, slice, int, PatternGroup]]:
        """Of each segment its bytes, its cells, cells a byte, and patterns."""
        start = 0
        for first, last, width, group in self._parts:
            count = -(-(last - first) // width)
            yield slice(start, start + count), slice(first, last), width, group
            start += count

    def pack(self, ranks: Tensor) -> tuple[Tensor, Tensor]:
        """int64 [row, cell, rank] by doubt -> uint8 [row, byte], and escape [row, cell, rank], 0 where not escaped."""
        escape, packed = torch.zeros_like(ranks), []
        for places, cells, width, group in self._bytes():
            own = ranks[:, cells]
            count = places.stop - places.start
            padded = torch.nn.functional.pad(own, (0, 0, 0, count * width - own.shape[1]))
            names = group.encode(padded.reshape(-1, width * self._num_top)).view(len(ranks), count)
            packed.append(names)
            escaped = (names == ESCAPE).repeat_interleave(width, 1)[:, : own.shape[1], None]
            escape[:, cells] = own * escaped
        return torch.cat(packed, 1), escape

    def unpack(self, packed: Tensor, escape: Tensor) -> Tensor:
        """The inverse of `pack`, of what `check` lets through: int64 [row, cell, rank]."""
        device = packed.device
        if device not in self._tables:
            self._tables[device] = [group.table.to(device) for *_, group in self._parts]
        parts = []
        for (places, cells, *_), table in zip(self._bytes(), self._tables[device], strict=True):
            names = packed[:, places].int()
            values = table.index_select(0, names.flatten()).view(len(packed), -1, self._num_top)
            parts.append(values[:, : cells.stop - cells.start])
        return torch.cat(parts, 1).long() + escape

    def check(self, packed: np.ndarray, escape: np.ndarray, num_classes: int) -> None:
        """Refuse what `pack` gives for no ranks.

        Args:
            packed: uint8 [row, byte].
            escape: [row, cell, rank].
            num_classes: C, which bounds the ranks.

        Raises:
            CacheError: a byte that names no pattern, a rank beyond the classes, or an escape where no byte says so.
        """
        most = num_classes - 1 - np.arange(self._num_top)
        check_rows((escape >= 0) & (escape <= most), "holds a rank beyond the classes")
        for places, cells, width, group in self._bytes():
            table = group.table[: group.num_patterns].numpy().reshape(-1, width, self._num_top)
            good = np.zeros(256, bool)
            good[: len(table)] = (table <= most).all((1, 2))
            good[ESCAPE] = True
            names = packed[:, places]
            check_rows(good[names], "names no pattern of its codec")
            beyond = (places.stop - places.start) * width - (cells.stop - cells.start)
            if beyond:
                ends = np.zeros(256, bool)
                ends[: len(table)] = (table[:, width - beyond :] == 0).all((1, 2))
                ends[ESCAPE] = True
                check_rows(ends[names[:, -1]], "holds ranks of cells beyond its grid")
            escaped = np.repeat(names == ESCAPE, width, axis=1)[:, : cells.stop - cells.start, None]
            check_rows((escape[:, cells] == 0) | escaped, "holds a value where none is escaped")
