"""What a transform codec is fitted to: basis, class means, cost models; and its bytes in a cache."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from gdkd_cache.errors import CacheError

MOST_COMPONENTS = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class TransformTables:
    """The fitted arrays.

    Attributes:
        basis: int8 [class, component]; divided by 127 its columns are nearly orthonormal.
        mean: int32 [class], mean centred logits, in units (a step is 4 * 127 units).
        class_means: int16 [class, component], what is predicted for each top-1 class, in quarter steps.
        variances: float32 [component], of the coefficients, in steps squared; for the encoder.
        costs: uint8 [column, 3], the columns' cost models.
        groups: uint8 [group], how many neighbouring columns share a byte.
    """

    basis: np.ndarray
    mean: np.ndarray
    class_means: np.ndarray
    variances: np.ndarray
    costs: np.ndarray
    groups: np.ndarray

    def to_bytes(self) -> np.ndarray:
        """uint8 [byte]: the arrays one after the other, column by column and byte plane by byte plane."""
        planes = []
        for field in dataclasses.fields(self):
            column_major = np.ascontiguousarray(getattr(self, field.name).T)
            octets = column_major.view(np.uint8).reshape(-1, column_major.dtype.itemsize)
            planes.append(octets.T.ravel())
        return np.concatenate(planes)


def _layout(
    num_classes: int, num_components: int, num_top: int, num_groups: int
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each table, in the order of their bytes."""
    return {
        "basis": ("<i1", (num_classes, num_components)),
        "mean": ("<i4", (num_classes,)),
        "class_means": ("<i2", (num_classes, num_components)),
        "variances": ("<f4", (num_components,)),
        "costs": ("u1", (num_components + 2 * num_top, 3)),
        "groups": ("u1", (num_groups,)),
    }


def tables_from_bytes(
    data: np.ndarray, *, num_classes: int, num_components: int, num_top: int, num_groups: int
) -> TransformTables:
    """The inverse of `TransformTables.to_bytes`.

    Raises:
        CacheError: numbers out of range, more or fewer bytes than they need, groups that do not cover the columns, or
            variances that are not finite.
    """
    if not (1 <= num_components <= MOST_COMPONENTS and 1 <= num_groups <= num_components + 2 * num_top):
        raise CacheError(
            f"the codec has {num_components} components and {num_groups} groups; at most {MOST_COMPONENTS} components, "
            "and no more groups than columns, are possible"
        )
    arrays, start = {}, 0
    for name, (dtype, shape) in _layout(num_classes, num_components, num_top, num_groups).items():
        itemsize, size = np.dtype(dtype).itemsize, int(np.prod(shape, dtype=object))
        octets = data[start : start + size * itemsize]
        if len(octets) != size * itemsize:
            raise CacheError(f"the codec's tables hold {len(data)} bytes, too few for {name}: the cache is damaged")
        column_major = np.ascontiguousarray(octets.reshape(itemsize, size).T).view(dtype)
        arrays[name] = np.ascontiguousarray(column_major.reshape(shape[::-1]).T)
        start += size * itemsize
    tables = TransformTables(**arrays)
    columns = num_components + 2 * num_top
    if start != len(data) or int(tables.groups.sum()) != columns or not tables.groups.all():
        raise CacheError(f"the codec's tables hold {len(data)} bytes that do not fit its {columns} columns")
    if not (np.isfinite(tables.variances).all() and (tables.variances > 0).all()):
        raise CacheError("the codec's tables hold a variance that is no finite number above 0: the cache is damaged")
    return tables
