"""What a codec is: logits [row, class] -> a few compact columns [row, ...] -> logits, losses served or refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gdkd_cache.errors import CacheError, UsageError
from gdkd_cache.losses.partition import top_classes
from gdkd_cache.losses.settings import LossSettings

_MOST_TOP = 1024


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a cache.

    Attributes:
        dtype: numpy's name of the element type.
        shape: shape of one row's entry; () for a scalar.
        fill: a sentinel that no encoder writes: what an unwritten chunk would read as.
        separate: compress each component on its own, where they have statistics of their own.
    """

    dtype: str
    shape: tuple[int, ...]
    fill: int | float
    separate: bool = False


class TopK(NamedTuple):
    """The teacher's largest logits, in exact rank order.

    Attributes:
        values: float32 [batch, k], non-increasing.
        classes: int64 [batch, k].
    """

    values: Float[Tensor, "batch k"]
    classes: Int[Tensor, "batch k"]


@runtime_checkable
class Codec(Protocol):
    """Encode and decode one teacher's logits; all that decoding needs is in `to_json` and `tables_bytes`."""

    @property
    def num_classes(self) -> int: ...

    @property
    def num_top(self) -> int:
        """How many classes are kept in exact rank order."""
        ...

    def columns(self) -> dict[str, Column]: ...

    def encode(self, logits: Float[Tensor, "row class"], labels: Int[Tensor, " row"]) -> dict[str, Tensor]:
        """Encode float logits [row, class] on any device; labels int64 [row]. Finite logits only."""
        ...

    def expand(self, columns: Mapping[str, np.ndarray], labels: np.ndarray) -> dict[str, np.ndarray]:
        """What a view keeps in memory, from its stored columns: once a view, so that a batch decodes fast.

        Raises:
            CacheError: values that no encoder writes.
        """
        ...

    def decode(
        self, columns: Mapping[str, Tensor], labels: Int[Tensor, " row"], temperature: float | None = None
    ) -> Float[Tensor, "row class"]:
        """Reconstruct float32 logits [row, class] of expanded columns, up to a constant per row."""
        ...

    def topk(self, columns: Mapping[str, Tensor]) -> TopK: ...

    def refusal(self, settings: LossSettings) -> str | None:
        """Why this codec cannot serve a loss, naming what it can serve; None when it can."""
        ...

    def to_json(self) -> dict[str, Any]: ...

    def tables_bytes(self) -> np.ndarray:
        """The codec's fitted arrays as uint8 [byte]; empty for a codec that has none."""
        ...


def class_dtype(num_classes: int) -> str:
    """The smallest unsigned type that holds every class id and, as its largest value, a sentinel."""
    return "uint8" if num_classes <= 255 else "uint16" if num_classes <= 65535 else "uint32"


def class_column(num_classes: int, shape: tuple[int, ...]) -> Column:
    """A column of class ids, with the type's largest value as sentinel."""
    dtype = class_dtype(num_classes)
    return Column(dtype=dtype, shape=shape, fill=torch.iinfo(getattr(torch, dtype)).max)


def exact_top(logits: Float[Tensor, "row class"], num_top: int) -> TopK:
    """The `num_top` largest logits in rank order; equal logits: the lower class id first."""
    classes = top_classes(logits, num_top)
    return TopK(logits.gather(-1, classes), classes)


def checked_columns(columns: Mapping[str, np.ndarray], num_classes: int) -> dict[str, np.ndarray]:
    """The columns as they are, for codecs that decode them straight away, once their values are checked.

    Raises:
        CacheError: an id that is no class, a class that occurs twice among a row's top, or a number that is not finite.
    """
    classes = columns["classes"]
    if classes.max(initial=0) >= num_classes:
        raise CacheError(f"a stored class id is {classes.max()}, which is no class: the cache is damaged")
    ordered = np.sort(classes, axis=-1)
    check_rows(ordered[:, 1:] != ordered[:, :-1], "holds a class twice among its top")
    for column in columns.values():
        if column.dtype.kind == "f":
            check_rows(np.isfinite(column), "holds a number that is not finite")
    return dict(columns)


def check_rows(good: np.ndarray, fault: str) -> None:
    """Refuse a view in which not all is good: bool [row, ...].

    Raises:
        CacheError: it names the first row that is not.
    """
    if not good.all():
        raise CacheError(f"row {int(np.argwhere(~good)[0][0])} {fault}: the cache is damaged")


def refusal_of_k(settings: LossSettings, num_top: int) -> str | None:
    """The refusal of a codec that keeps the whole distribution: it lacks only exact classes beyond `num_top`."""
    if settings.num_top <= num_top:
        return None
    return (
        f"{settings.loss} with k={settings.num_top} needs more exact classes than the {num_top} stored; "
        f"it serves every loss with k up to {num_top} at any temperature"
    )


def check_num_top(num_top: int, num_classes: int) -> None:
    if not 1 <= num_top < num_classes or num_top > _MOST_TOP:
        raise UsageError(
            f"the codec keeps {num_top} exact classes; it must be at least 1, below the number of classes, "
            f"{num_classes}, and at most {_MOST_TOP}"
        )


def check_step(step: float) -> None:
    # With steps up to 2**64 no sum of whole steps that a column can hold overflows float32.
    if not 0 < step <= 2**64:
        raise UsageError(f"step is {step}; it must be above 0 and at most 2**64")
