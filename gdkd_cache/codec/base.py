"""What a codec is: logits [row, class] -> a few compact columns [row, ...] -> logits, losses served or refused."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gdkd_cache.codec.registry import CODECS
from gdkd_cache.errors import CacheError, UsageError
from gdkd_cache.fields import check_fields, option
from gdkd_cache.losses.base import Loss
from gdkd_cache.losses.partition import top_classes
from gdkd_cache.schema import kind_of

if TYPE_CHECKING:
    from gdkd_cache.codec.calibration import Calibration

Labels = TypeVar("Labels", np.ndarray, Tensor)

_MOST_TOP = 1024


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a cache.

    Attributes:
        dtype: numpy's name of the element type.
        shape: shape of one row's entry; () for a scalar.
        fill: a sentinel that no encoder writes: what an unwritten chunk would read as.
        separate: compress each component of the first axis on its own, where they have statistics of their own.
        sparse: zero nearly everywhere, so that a view keeps the rest alone in memory.
    """

    dtype: str
    shape: tuple[int, ...]
    fill: int | float
    separate: bool = False
    sparse: bool = False


class TopK(NamedTuple):
    """The teacher's largest logits, in exact rank order.

    Attributes:
        values: float32 [batch, k], or [batch, *grid, k], non-increasing.
        classes: int64, likewise.
    """

    values: Float[Tensor, "batch *grid k"]
    classes: Int[Tensor, "batch *grid k"]


class Decoded(NamedTuple):
    """What a codec makes of some rows.

    Attributes:
        logits: float32 [row, class], or [row, *grid, class], up to a constant per row or cell.
        top: the exact top classes.
    """

    logits: Float[Tensor, "row *grid class"]
    top: TopK


class References(NamedTuple):
    """What the views before a view, of those that predict it, say of the same rows.

    Attributes:
        deviations: int8 [row, reference, predicted], as `Codec.deviations` gives them of each in turn.
        weights: int16 [row, reference] in 1..256: how near each is to the view.
    """

    deviations: Int[Tensor, "row reference predicted"]
    weights: Int[Tensor, "row reference"]


def given(references: References | None) -> tuple[References, ...]:
    """References as the last argument of a codec's methods: nothing where there are none, as codecs may take none."""
    return () if references is None else (references,)


@dataclass(frozen=True, kw_only=True)
class CodecOptions:
    """What a codec's spec may say; a codec with more to say has a subclass of it.

    Raises:
        UsageError: a value of another type or out of range; it names it.
    """

    k: int | None = option(None, "classes kept in exact rank order", least=1, unset="8, or what the losses need")

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Codec(ABC):
    """Encodes and decodes one teacher's logits: [row, class] to a few compact columns [row, ...] and back.

    All that decoding needs is in its fields, which a manifest holds as JSON, and in its tables. A subclass is a frozen,
    keyword-only dataclass of numbers, texts and tuples of them.

    Attributes:
        num_classes: C.
        num_top: how many classes are kept in exact rank order, 1 <= num_top < C.
    """

    Options: ClassVar[type[CodecOptions]] = CodecOptions
    """What a user may say of it."""
    searches: ClassVar[bool] = False
    """Whether fitting looks for the fewest bytes that meet a gradient error, unless the options fix that."""
    exact_values: ClassVar[bool] = True
    """Whether the logits of the exact classes come back nearly as they were, however coarse the others are."""
    whole_rows: ClassVar[bool] = False
    """Whether it sees rows of several cells whole, logits [row, *grid, class], where others see a cell as a row.

    Its labels are [row], or [row, ...] where each place of the grid has one; its columns are [row, ...], and what it
    decodes is [row, *grid, class] and [row, *grid, k].
    """

    num_classes: int
    num_top: int = 8

    @classmethod
    @abstractmethod
    def fit(cls, calibration: "Calibration", options: Any, fidelity: float) -> "Codec":
        """Fit it to calibration rows.

        Args:
            calibration: the rows, and what is asked for.
            options: an instance of `Options`.
            fidelity: the gradient error to meet, for one that searches; where it cannot, this is another codec.
        """

    @abstractmethod
    def columns(self) -> dict[str, Column]:
        """Its columns by name."""

    @property
    def grid(self) -> tuple[int, ...]:
        """The grid of the rows that it sees whole: (height, width) or (output, height, width)."""
        return ()

    @classmethod
    def reference_candidates(cls, options: Any) -> tuple[int, ...]:
        """How many references a fit may choose from, rising; of which options that name a number leave that one."""
        return ()

    @property
    def num_references(self) -> int:
        """How many views, the first ones, all later ones are predicted from; each of these from those before it.

        A codec with some takes what they say in `encode` and `decode`, of all that come before the view, and their
        number in `check`. Where it is 0, nobody gives any.
        """
        return 0

    @property
    def num_predicted(self) -> int:
        """How many numbers a view that predicts others says of a row."""
        return 0

    def deviations(
        self, columns: Mapping[str, Tensor], labels: Int[Tensor, " row"], references: References | None = None
    ) -> Int[Tensor, "row predicted"]:
        """What some checked rows of a view that predicts others say to those: int8, `num_predicted` of each row."""
        return labels.new_zeros((len(labels), self.num_predicted), dtype=torch.int8)

    @abstractmethod
    def encode(
        self,
        logits: Float[Tensor, "row *grid class"],
        labels: Int[Tensor, "row *places"],
        references: References | None = None,
    ) -> dict[str, Tensor]:
        """Encode float logits [row, class] on any device; labels int64 [row]. Finite logits only."""

    @abstractmethod
    def check(self, columns: Mapping[str, np.ndarray], labels: np.ndarray, num_references: int = 0) -> None:
        """Refuse what no encoder writes, of a whole view at once: all that it lets through can be decoded.

        It runs beside the training whenever a view is loaded: it looks at the columns as they are stored, and decodes
        nothing.

        Raises:
            CacheError: values that no encoder writes.
        """

    @abstractmethod
    def decode(
        self,
        columns: Mapping[str, Tensor],
        labels: Int[Tensor, "row *places"],
        temperature: float | None = None,
        references: References | None = None,
    ) -> Decoded:
        """Reconstruct some rows from checked columns, as `encode` gave them, on the columns' device."""

    def refusal(self, loss: Loss) -> str | None:
        """Why it cannot serve a loss, naming what it can serve; None when it can.

        As it is here: it keeps the whole distribution, and lacks only exact classes beyond `num_top`.
        """
        if loss.num_top <= self.num_top:
            return None
        return (
            f"{loss.name} with k={loss.num_top} needs more exact classes than the {self.num_top} stored; "
            f"it serves every loss with k up to {self.num_top} at any temperature"
        )

    @property
    def name(self) -> str:
        """As manifests name it: one of the registry's names, or `package.module:name`."""
        return CODECS.name_of(type(self))

    def to_json(self) -> dict[str, Any]:
        """Its name and fields, as manifests hold them, and the size of its tables where it has some."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        stored = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        size = self.tables_bytes().size
        return {"name": self.name, **stored, **({"tables_bytes": size} if size else {})}

    @classmethod
    def json_kinds(cls) -> dict[str, Any]:
        """What its JSON must look like, but for the name and the size of its tables, as `check_json` wants it."""
        return {name.removesuffix("?"): kind for name, kind in kind_of(cls).items()}

    @classmethod
    def from_json(cls, stored: dict[str, Any], tables: np.ndarray) -> "Codec":
        """Rebuild it from JSON of the right types, without name and size of the tables, and its tables, uint8 [byte].

        Raises:
            CacheError, UsageError: a value out of range, or tables that are damaged.
        """
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()
        }
        return cls(**fields)

    def tables_bytes(self) -> np.ndarray:
        """Its fitted arrays as uint8 [byte]; empty for a codec that has none."""
        return np.zeros(0, np.uint8)


def class_dtype(num_classes: int) -> str:
    """The smallest unsigned type that holds every class id and, as its largest value, a sentinel."""
    return "uint8" if num_classes <= 255 else "uint16" if num_classes <= 65535 else "uint32"


Ids = TypeVar("Ids", np.ndarray, Tensor)


def coded(labels: Ids) -> Ids:
    """Labels as codecs are given them: class ids, where class 0 stands for `NO_LABEL`."""
    return labels.clip(0)


def class_column(num_classes: int, shape: tuple[int, ...]) -> Column:
    """A column of class ids, with the type's largest value as sentinel."""
    dtype = class_dtype(num_classes)
    return Column(dtype=dtype, shape=shape, fill=torch.iinfo(getattr(torch, dtype)).max)


def exact_top(logits: Float[Tensor, "row *grid class"], num_top: int) -> TopK:
    """The `num_top` largest logits in rank order; equal logits: the lower class id first."""
    classes = top_classes(logits, num_top)
    return TopK(logits.gather(-1, classes), classes)


def labels_of_cells(labels: Labels, grid: tuple[int, ...]) -> Labels:
    """A label for each cell of rows of a grid, [row x cell]: that of its place, or that of its row.

    Args:
        labels: [row], or [row, ...] with one for each place of the grid, which all outputs share.
        grid: () for one cell, (height, width), or (output, height, width).
    """
    if not grid:
        return labels
    places = labels.reshape(len(labels), 1, prod(labels.shape[1:]))
    shape = (len(labels), prod(grid[:-2]), prod(grid[-2:]))
    whole = places.expand(shape) if isinstance(places, Tensor) else np.broadcast_to(places, shape)
    return whole.reshape(prod(shape))


def check_columns(columns: Mapping[str, np.ndarray], num_classes: int) -> None:
    """Refuse what no column may hold: of `classes`, which are a row's top, and of all numbers.

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


def check_rows(good: np.ndarray, fault: str) -> None:
    """Refuse a view in which not all is good: bool [row, ...].

    Raises:
        CacheError: it names the first row that is not.
    """
    if not good.all():
        raise CacheError(f"row {int(np.argwhere(~good)[0][0])} {fault}: the cache is damaged")


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
