"""What a transform codec is fitted to: basis, class means, cost models; and its bytes in a cache."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from gdkd_cache.errors import CacheError

MOST_COMPONENTS = 1024
MOST_REFERENCES = 64
BASIS_SCALE = 127
"""What a basis of bytes is divided by; of finer ones, of two bytes a number, it is a multiple of this."""
MOST_SCALE = 8 * BASIS_SCALE


@dataclass(frozen=True, kw_only=True, eq=False)
class TransformTables:
    """The fitted arrays.

    Attributes:
        basis: int8 or, at a scale above 127, int16 [class, component]; divided by the scale its columns are nearly
            orthonormal.
        mean: int32 [class], mean centred logits, in units (a step is 4 times the basis's scale of them).
        class_means: int16 [class, component], what is predicted for each top-1 class, in quarter steps.
        variances: float32 [component], of the coefficients, in steps squared; for the encoder.
        costs: uint8 [column, 3], the columns' cost models.
        groups: uint8 [group], how many neighbouring columns share a byte.
        reference_variances, reference_costs, reference_groups: those three of the views that predict others.
        factors: int16 [reference, predicted], what counts of the mean of so many references, in 256ths.
    """

    basis: np.ndarray
    mean: np.ndarray
    class_means: np.ndarray
    variances: np.ndarray
    costs: np.ndarray
    groups: np.ndarray
    reference_variances: np.ndarray
    reference_costs: np.ndarray
    reference_groups: np.ndarray
    factors: np.ndarray

    def to_bytes(self) -> np.ndarray:
        """uint8 [byte]: the arrays one after the other, column by column and byte plane by byte plane."""
        planes = []
        for field in dataclasses.fields(self):
            column_major = np.ascontiguousarray(getattr(self, field.name).T)
            octets = column_major.view(np.uint8).reshape(-1, column_major.dtype.itemsize)
            planes.append(octets.T.ravel())
        return np.concatenate(planes)


@dataclass(frozen=True, kw_only=True)
class TableSizes:
    """What the shapes of the tables follow from; the last three are 0 without references."""

    num_classes: int
    num_components: int
    num_top: int
    num_groups: int
    basis_scale: int = BASIS_SCALE
    num_references: int = 0
    num_predicted: int = 0
    num_reference_groups: int = 0

    @property
    def num_columns(self) -> int:
        return self.num_components + 2 * self.num_top


def _layout(sizes: TableSizes) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each table, in the order of their bytes."""
    num_classes, num_components = sizes.num_classes, sizes.num_components
    others = 1 if sizes.num_references else 0
    return {
        "basis": ("<i1" if sizes.basis_scale == BASIS_SCALE else "<i2", (num_classes, num_components)),
        "mean": ("<i4", (num_classes,)),
        "class_means": ("<i2", (num_classes, num_components)),
        "variances": ("<f4", (num_components,)),
        "costs": ("u1", (sizes.num_columns, 3)),
        "groups": ("u1", (sizes.num_groups,)),
        "reference_variances": ("<f4", (others * num_components,)),
        "reference_costs": ("u1", (others * sizes.num_columns, 3)),
        "reference_groups": ("u1", (sizes.num_reference_groups,)),
        "factors": ("<i2", (sizes.num_references, sizes.num_predicted)),
    }


def no_references() -> dict[str, np.ndarray]:
    """The tables that only references have, of a codec that has none."""
    return {
        "reference_variances": np.zeros(0, np.float32),
        "reference_costs": np.zeros((0, 3), np.uint8),
        "reference_groups": np.zeros(0, np.uint8),
        "factors": np.zeros((0, 0), np.int16),
    }


def tables_from_bytes(data: np.ndarray, sizes: TableSizes) -> TransformTables:
    """The inverse of `TransformTables.to_bytes`.

    Raises:
        CacheError: numbers out of range, more or fewer bytes than they need, groups that do not cover the columns, or
            variances that are not finite.
    """
    columns, most = sizes.num_columns, MOST_COMPONENTS
    if not (1 <= sizes.num_components <= most and 1 <= sizes.num_groups <= columns):
        raise CacheError(
            f"the codec has {sizes.num_components} components and {sizes.num_groups} groups; at most {most} "
            "components, and no more groups than columns, are possible"
        )
    given = (sizes.num_references, sizes.num_predicted, sizes.num_reference_groups)
    limits = (MOST_REFERENCES, sizes.num_components, columns)
    if any(given) and not all(1 <= number <= limit for number, limit in zip(given, limits, strict=True)):
        raise CacheError(
            f"the codec has {given[0]} references, {given[1]} numbers predicted and {given[2]} groups of references; "
            f"none at all, or 1 to {', 1 to '.join(map(str, limits))}, are possible"
        )
    arrays, start = {}, 0
    for name, (dtype, shape) in _layout(sizes).items():
        itemsize, size = np.dtype(dtype).itemsize, int(np.prod(shape, dtype=object))
        octets = data[start : start + size * itemsize]
        if len(octets) != size * itemsize:
            raise CacheError(f"the codec's tables hold {len(data)} bytes, too few for {name}: the cache is damaged")
        column_major = np.ascontiguousarray(octets.reshape(itemsize, size).T).view(dtype)
        arrays[name] = np.ascontiguousarray(column_major.reshape(shape[::-1]).T)
        start += size * itemsize
    tables = TransformTables(**arrays)
    groups = [tables.groups, *([tables.reference_groups] if sizes.num_references else [])]
    if start != len(data) or any(int(own.sum()) != columns or not own.all() for own in groups):
        raise CacheError(f"the codec's tables hold {len(data)} bytes that do not fit its {columns} columns")
    variances = np.concatenate([tables.variances, tables.reference_variances])
    if not (np.isfinite(variances).all() and (variances > 0).all()):
        raise CacheError("the codec's tables hold a variance that is no finite number above 0: the cache is damaged")
    return tables
