"""How many distributions a row holds: one for an image's class, or one a cell of a grid over the image.

A codec knows nothing of this: it sees a cell in the place of a row. What is stored of a row of several cells has an
axis for them; that of a single cell has none, so that classification is the case of one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from gdkd_cache.codec.base import Codec, Column, Decoded, References, TopK, coded, given

Array = TypeVar("Array", np.ndarray, Tensor)


@dataclass(frozen=True, kw_only=True)
class Cells:
    """The grid of a row's cells.

    Attributes:
        height, width: at least 1.
    """

    height: int = 1
    width: int = 1
    outputs: tuple[str, ...] = ()

    @property
    def number(self) -> int:
        """How many distributions a row holds."""
        return self.height * self.width * max(len(self.outputs), 1)

    @classmethod
    def of(cls, logits: Float[Tensor, "row *grid class"]) -> "Cells":
        """The cells of rows of such logits."""
        grid = logits.shape[1:-1]
        return cls(height=grid[-2], width=grid[-1]) if grid else cls()

    @property
    def grid(self) -> tuple[int, ...]:
        """The axes of a row's cells in logits and labels: none for a single cell."""
        return () if self == ONE_CELL else (self.height, self.width)

    @property
    def axis(self) -> tuple[int, ...]:
        """The axis of a row's cells in what is stored: none for a single cell."""
        return () if self == ONE_CELL else (self.height * self.width,)

    def column(self, column: Column) -> Column:
        """A column of rows, from one of cells."""
        if self == ONE_CELL:
            return column
        # Compressed on their own, the components would be a chunk for each cell.
        return replace(column, shape=(*self.axis, *column.shape), separate=False)

    def split(self, rows: Array, *, stored: bool = True) -> Array:
        """Cells [row x cell, ...] of a stored column [row, cell, ...], or of a grid [row, height, width, ...]."""
        axes = self.axis if stored else self.grid
        return rows.reshape(len(rows) * self.height * self.width, *rows.shape[1 + len(axes) :])

    def join(self, cells: Array, *, stored: bool = True) -> Array:
        """What `split` was given, of what it gave."""
        axes = self.axis if stored else self.grid
        return cells.reshape(len(cells) // (self.height * self.width), *axes, *cells.shape[1:])

    def encode(
        self,
        codec: Codec,
        logits: Float[Tensor, "row *grid class"],
        labels: Int[Tensor, "row *grid"],
        references: References | None = None,
    ) -> dict[str, Tensor]:
        """The stored columns, each [row, ...] or [row, cell, ...], of float logits on any device.

        Rows of several cells have no references: a view's cells lie elsewhere in the image than another's.
        """
        columns = codec.encode(
            self.split(logits, stored=False), self.split(coded(labels), stored=False), *given(references)
        )
        return {name: self.join(column) for name, column in columns.items()}

    def check(self, codec: Codec, columns: Mapping[str, np.ndarray], labels: np.ndarray, num_references: int) -> None:
        """Refuse a view's stored columns, labels stored likewise, if the codec does.

        Raises:
            CacheError: values that no encoder writes.
        """
        counts = (num_references,) if num_references else ()
        codec.check({name: self.split(column) for name, column in columns.items()}, self.split(coded(labels)), *counts)

    def decode(
        self,
        codec: Codec,
        columns: Mapping[str, Tensor],
        labels: Tensor,
        temperature: float | None = None,
        references: References | None = None,
    ) -> Decoded:
        """Decode some rows' stored columns: logits [row, *grid, class], and the top classes [row, *grid, k]."""
        cells = {name: self.split(column) for name, column in columns.items()}
        logits, top = codec.decode(cells, self.split(coded(labels)), temperature, *given(references))
        logits, values, classes = (self.join(part, stored=False) for part in (logits, *top))
        return Decoded(logits, TopK(values, classes))


ONE_CELL = Cells()
