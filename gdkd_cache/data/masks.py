"""Masks: of which class each pixel of an image is, int16 [height, width], or `IGNORE`."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from gdkd_cache.data.images.decoding import decode_mask
from gdkd_cache.errors import SourceError

IGNORE = -100
"""The id of pixels that count nowhere: what torch's cross_entropy ignores when nobody says otherwise."""
MOST_MASK_CLASSES = 2**15
"""Class ids of masks are int16."""
_FILE_IDS = 2**16
_UNKNOWN = -1


@runtime_checkable
class Masks(Protocol):
    """The masks of a source's rows."""

    def __getitem__(self, row: int) -> np.ndarray:
        """The row's mask, [height, width], class ids or `IGNORE`."""
        ...

    def take(self, rows: np.ndarray) -> "Masks":
        """Those of the given rows, int64 [row]."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedMasks(ABC):
    """Masks in PNG files of one channel, whose pixels are ids: grey values, or indices into a palette.

    Attributes:
        keys: of the rows.
        ids: what an id in a file means, from `id_table`.
    """

    keys: Sequence[str]
    ids: np.ndarray

    @abstractmethod
    def file(self, row: int) -> Path | bytes:
        """The row's file, a path or its bytes."""

    def __getitem__(self, row: int) -> np.ndarray:
        """The row's mask, int16 [height, width].

        Raises:
            SourceError: it cannot be decoded, has colours, or an id that is none of the table's; it names the key.
        """
        found = decode_mask(self.keys[row], self.file(row))
        mask = self.ids[found]
        if (unknown := mask == _UNKNOWN).any():
            raise SourceError(
                f"mask of {self.keys[row]!r} has id {found[unknown][0]}, which is neither a class "
                f"({_told(self.ids >= 0)}) nor ignored ({_told(self.ids == IGNORE)}); name that class or ignored id"
            )
        return mask

    def take(self, rows: np.ndarray) -> "EncodedMasks":
        """Those of the given rows."""
        return replace(self, keys=[self.keys[row] for row in rows.tolist()], **self._taken(rows))

    @abstractmethod
    def _taken(self, rows: np.ndarray) -> dict[str, Any]:
        """What it has beside the keys for each row, of the given ones."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskFiles(EncodedMasks):
    """Attributes: files: a path, or the bytes of a file, a row."""

    files: Sequence[Path | bytes]

    def file(self, row: int) -> Path | bytes:
        return self.files[row]

    def _taken(self, rows: np.ndarray) -> dict[str, Any]:
        return {"files": [self.files[row] for row in rows.tolist()]}


def id_table(classes: Sequence[int], ignored: Sequence[int]) -> np.ndarray:
    """What ids in mask files mean: int16 [65536].

    Args:
        classes: the ids of the classes, in the order of class ids.
        ignored: ids of pixels that count nowhere; those that are classes' stay so.
    """
    ids = np.full(_FILE_IDS, _UNKNOWN, np.int16)
    ids[list(ignored)] = IGNORE
    ids[list(classes)] = np.arange(len(classes))
    return ids


def check_mask(key: str, mask: Any, num_classes: int) -> np.ndarray:
    """A row's mask as int16 [height, width], C-contiguous.

    Raises:
        SourceError: it is no array of whole numbers of two dimensions, or has an id that is neither a class nor
            `IGNORE`; it names the key.
    """
    given = np.asarray(mask)
    if given.ndim != 2 or given.dtype.kind not in "iu":
        raise SourceError(
            f"mask of {key!r} is {given.dtype} {list(given.shape)}; it must be whole numbers [height, width]"
        )
    if not (known := ((given >= 0) & (given < num_classes)) | (given == IGNORE)).all():
        raise SourceError(
            f"mask of {key!r} has id {given[~known][0]}; it must be a class id, 0 to {num_classes - 1}, or {IGNORE} "
            "where it is ignored"
        )
    return np.require(given, np.int16, ["C"])


def check_mask_size(key: str, mask: np.ndarray, size: tuple[int, ...]) -> None:
    """Check that a mask is of its image's size, height and width.

    Raises:
        SourceError: it is not; it names the key.
    """
    if mask.shape != size:
        sizes = ["x".join(map(str, shape)) for shape in (mask.shape, size)]
        raise SourceError(f"mask of {key!r} is {sizes[0]} pixels, its image {sizes[1]}; both must be of one size")


def cell_labels(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """The class of each cell of a grid over images, that of the pixel at its centre.

    Args:
        masks: int [..., height, width].
        grid: cells down and across; may be as many as the pixels, or more.

    Returns:
        int [..., *grid], class ids or `IGNORE`.
    """
    rows, columns = (
        torch.from_numpy(centres(old, new)).to(masks.device) for old, new in zip(masks.shape[-2:], grid, strict=True)
    )
    return masks.index_select(-2, rows).index_select(-1, columns)


def centres(old: int, new: int) -> np.ndarray:
    """For each of `new` equal parts of a side of `old` pixels, the pixel that its centre lies in: int64 [new]."""
    return (2 * np.arange(new) + 1) * old // (2 * new)


def _told(which: np.ndarray) -> str:
    """Ids in words."""
    ids = np.flatnonzero(which).tolist()
    if ids and len(ids) > 1 and ids == list(range(ids[0], ids[-1] + 1)):
        return f"{ids[0]} to {ids[-1]}"
    return ", ".join(map(str, ids)) or "none"
