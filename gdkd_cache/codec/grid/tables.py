"""What the coding of one output is fitted to, and its bytes in a cache."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from gdkd_cache.codec.grid.blocks import CELLS
from gdkd_cache.codec.grid.order import MOST_CELLS_A_BYTE, NUM_SEGMENTS
from gdkd_cache.errors import CacheError

MOST_COMPONENTS = 255
BASIS_SCALE = 127
DIGIT = 32
"""A wide number is so many times one digit, and another one of -16 to 15."""
MOST_NARROW, MOST_WIDE = 127, 127 * DIGIT


@dataclass(frozen=True, kw_only=True, eq=False)
class GridTables:
    """The fitted arrays of one output.

    Attributes:
        mean: int32 [class], mean centred logits, in 512 units (`plane.py`).
        basis: int8 [class, component]; divided by 127 its columns are nearly orthonormal.
        coded: uint16 [number], which numbers of a block are coded, of frequency * components + component: by falling
            variance, the wide ones first.
        variances: float32 [number], of these, in steps squared; for the encoder.
        costs: uint8 [column, 3], the columns' cost models: high digits of wide numbers, low ones, other numbers.
        groups: uint8 [group], how many neighbouring columns share a byte.
        rank_costs: uint8 [segment, rank, 3], likewise of the ranks.
        rank_widths: uint8 [segment], how many cells share a byte.
    """

    mean: np.ndarray
    basis: np.ndarray
    coded: np.ndarray
    variances: np.ndarray
    costs: np.ndarray
    groups: np.ndarray
    rank_costs: np.ndarray
    rank_widths: np.ndarray

    def to_bytes(self) -> np.ndarray:
        """uint8 [byte]: the arrays one after the other, byte plane by byte plane."""
        planes = []
        for field in dataclasses.fields(self):
            array = np.ascontiguousarray(getattr(self, field.name).T)
            planes.append(array.view(np.uint8).reshape(-1, array.dtype.itemsize).T.ravel())
        return np.concatenate(planes)


@dataclass(frozen=True, kw_only=True)
class GridSizes:
    """What the shapes of an output's tables follow from."""

    num_classes: int
    num_top: int
    num_components: int
    num_coded: int
    num_wide: int
    num_groups: int

    def layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of each table, in the order of their bytes.

        Raises:
            CacheError: a number out of range.
        """
        most = CELLS * self.num_components
        columns = self.num_coded + self.num_wide
        limits = {
            "components": (self.num_components, 1, min(MOST_COMPONENTS, self.num_classes)),
            "numbers": (self.num_coded, 1, most),
            "wide numbers": (self.num_wide, 0, self.num_coded),
            "groups": (self.num_groups, 1, columns),
        }
        for what, (number, least, largest) in limits.items():
            if not least <= number <= largest:
                raise CacheError(f"codec grid has {number} {what}; {least} to {largest} are possible")
        return {
            "mean": ("<i4", (self.num_classes,)),
            "basis": ("i1", (self.num_classes, self.num_components)),
            "coded": ("<u2", (self.num_coded,)),
            "variances": ("<f4", (self.num_coded,)),
            "costs": ("u1", (columns, 3)),
            "groups": ("u1", (self.num_groups,)),
            "rank_costs": ("u1", (NUM_SEGMENTS, self.num_top, 3)),
            "rank_widths": ("u1", (NUM_SEGMENTS,)),
        }


def tables_from_bytes(data: np.ndarray, sizes: list[GridSizes]) -> list[GridTables]:
    """The inverse of `GridTables.to_bytes`, of all outputs one after the other.

    Raises:
        CacheError: numbers out of range, more or fewer bytes than they need, or values that no fit gives.
    """
    found, start = [], 0
    for own in sizes:
        arrays = {}
        for name, (dtype, shape) in own.layout().items():
            itemsize, size = np.dtype(dtype).itemsize, int(np.prod(shape, dtype=object))
            octets = data[start : start + size * itemsize]
            if len(octets) != size * itemsize:
                raise CacheError(f"the codec's tables hold {len(data)} bytes, too few for {name}: the cache is damaged")
            array = np.ascontiguousarray(octets.reshape(itemsize, size).T).view(dtype)
            arrays[name] = np.ascontiguousarray(array.reshape(shape[::-1]).T)
            start += size * itemsize
        found.append(GridTables(**arrays))
        _check(found[-1], own)
    if start != len(data):
        raise CacheError(f"the codec's tables hold {len(data)} bytes, and need {start}: the cache is damaged")
    return found


def _check(tables: GridTables, sizes: GridSizes) -> None:
    good = (
        int(tables.groups.sum()) == sizes.num_coded + sizes.num_wide
        and bool(tables.groups.all())
        and len(np.unique(tables.coded)) == len(tables.coded)
        and int(tables.coded.max()) < CELLS * sizes.num_components
        and bool(((tables.rank_widths >= 1) & (tables.rank_widths <= MOST_CELLS_A_BYTE)).all())
        and bool((np.isfinite(tables.variances) & (tables.variances > 0)).all())
    )
    if not good:
        raise CacheError("the codec's tables hold values that no fit gives: the cache is damaged")
