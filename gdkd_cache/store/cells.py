"""How many distributions a row holds: one for an image's class, or one a cell of a grid over the image.

Most codecs know nothing of this: they see a cell in the place of a row; some see whole rows. What is stored of a row of
several cells has an axis for them; that of a single cell has none, so that classification is the case of one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from gdkd_cache.codec.base import Codec, Column, Decoded, References, TopK, coded, given, labels_of_cells
from gdkd_cache.errors import CacheError
from gdkd_cache.store.arrays import CHUNK_ROWS

Array = TypeVar("Array", np.ndarray, Tensor)

_SHARD_CELLS = 2**24
"""Of a shard at most: what is encoded of it lies in memory until it is committed."""


@dataclass(frozen=True, kw_only=True)
class Cells:
    """The grid of a row's cells.

    Attributes:
        height, width: at least 1.
        outputs: the names of the network's outputs that each say something of the grid; none where there is only one.
        labelled: whether each place of the grid has a label of its own. Rows of masks have none but a 0 for the row.
    """

    height: int = 1
    width: int = 1
    outputs: tuple[str, ...] = ()
    labelled: bool = False

    @classmethod
    def of(cls, logits: Float[Tensor, "row *grid class"], outputs: Sequence[str] = ()) -> "Cells":
        """The cells of rows of such logits, which have an axis of outputs where these have names."""
        grid = logits.shape[1:-1]
        return cls(height=grid[-2], width=grid[-1], outputs=tuple(outputs)) if grid else cls()

    @property
    def grid(self) -> tuple[int, ...]:
        """The axes of a row's cells in logits: none for a single cell, (height, width), or (output, height, width)."""
        outputs = (len(self.outputs),) if self.outputs else ()
        return outputs + self.places

    @property
    def places(self) -> tuple[int, ...]:
        """The axes of a row's labels, where each place has one."""
        return () if (self.height, self.width) == (1, 1) and not self.outputs else (self.height, self.width)

    @property
    def number(self) -> int:
        """How many cells a row has, of all outputs."""
        return prod(self.grid)

    @property
    def axis(self) -> tuple[int, ...]:
        """The axis of a row's cells in what is stored: none for a single cell."""
        return (self.number,) if self.grid else ()

    @property
    def label_axis(self) -> tuple[int, ...]:
        """The axis of a row's labels in what is stored: none where a row has one label."""
        return (prod(self.places),) if self.labelled and self.places else ()

    def shard_rows(self, most: int) -> int:
        """How many rows a shard shall have, at most so many: fewer where a row has many cells."""
        rows = max(_SHARD_CELLS // self.number, 1)
        if rows > CHUNK_ROWS:
            rows -= rows % CHUNK_ROWS  # of whole chunks
        return min(most, rows)

    def columns(self, codec: Codec) -> dict[str, Column]:
        """The columns of rows, of a codec's.

        Raises:
            CacheError: a codec that sees whole rows, of another grid.
        """
        columns = codec.columns()
        if codec.whole_rows:
            if codec.grid != self.grid:
                raise CacheError(
                    f"the codec is of rows of {list(codec.grid)} cells, and the cache's have {list(self.grid)}"
                )
            return columns
        return {name: self.column(column) for name, column in columns.items()}

    def column(self, column: Column) -> Column:
        """A column of rows, from one of cells."""
        if not self.grid:
            return column
        # Compressed on their own, the components would be a chunk for each cell.
        return replace(column, shape=(*self.axis, *column.shape), separate=False)

    def split(self, rows: Array, *, stored: bool = True) -> Array:
        """Cells [row x cell, ...] of a stored column [row, cell, ...], or of a grid [row, *grid, ...]."""
        axes = self.axis if stored else self.grid
        return rows.reshape(len(rows) * self.number, *rows.shape[1 + len(axes) :])

    def join(self, cells: Array, *, stored: bool = True) -> Array:
        """What `split` was given, of what it gave."""
        axes = self.axis if stored else self.grid
        return cells.reshape(len(cells) // self.number, *axes, *cells.shape[1:])

    def encode(
        self,
        codec: Codec,
        logits: Float[Tensor, "row *grid class"],
        labels: Int[Tensor, "row *places"],
        references: References | None = None,
    ) -> dict[str, Tensor]:
        """The stored columns, each [row, ...] or [row, cell, ...], of float logits on any device.

        Labels are [row] or, where each place has one, [row, height, width]. Rows of several cells have no references: a
        view's cells lie elsewhere in the image than another's.
        """
        labels = coded(labels)
        if codec.whole_rows:
            return codec.encode(logits, labels)
        labels = labels_of_cells(labels, self.grid)
        columns = codec.encode(self.split(logits, stored=False), labels, *given(references))
        return {name: self.join(column) for name, column in columns.items()}

    def check(self, codec: Codec, columns: Mapping[str, np.ndarray], labels: np.ndarray, num_references: int) -> None:
        """Refuse a view's stored columns, labels stored likewise, if the codec does.

        Raises:
            CacheError: values that no encoder writes.
        """
        counts, labels = (num_references,) if num_references else (), coded(labels)
        if codec.whole_rows:
            codec.check(columns, labels)
        else:
            labels = labels_of_cells(labels, self.grid)
            codec.check({name: self.split(column) for name, column in columns.items()}, labels, *counts)

    def decode(
        self,
        codec: Codec,
        columns: Mapping[str, Tensor],
        labels: Tensor,
        temperature: float | None = None,
        references: References | None = None,
    ) -> Decoded:
        """Decode some rows' stored columns: logits [row, *grid, class], and the top classes [row, *grid, k]."""
        labels = coded(labels)
        if codec.whole_rows:
            return codec.decode(columns, labels, temperature)
        cells = {name: self.split(column) for name, column in columns.items()}
        logits, top = codec.decode(cells, labels_of_cells(labels, self.grid), temperature, *given(references))
        logits, values, classes = (self.join(part, stored=False) for part in (logits, *top))
        return Decoded(logits, TopK(values, classes))


ONE_CELL = Cells()
