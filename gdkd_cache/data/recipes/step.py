"""What every step of a recipe is, and how it reads its random words."""

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from gdkd_cache.errors import UsageError
from gdkd_cache.seeding import Words

Range = tuple[int | float, int | float]
MAX_DRAWS = 64


@dataclass(frozen=True)
class Step(ABC):
    """One augmentation: a frozen dataclass whose fields are its whole configuration, checked when it is made.

    Raises:
        UsageError: a field has another type than its default, or is out of range; it names both.
    """

    name: ClassVar[str]
    ranges: ClassVar[dict[str, Range]] = {}
    """The allowed range of each number, or of each number in a tuple; tuples of two must rise."""
    integral: ClassVar[bool] = False
    """Whether pixels come from integers and indexing alone, so that every device gives the same."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not _fits(value, field.type, self.ranges.get(field.name)):
                kind = getattr(field.type, "__name__", field.type)
                limits = self.ranges.get(field.name)
                allowed = f" in {limits[0]:g}..{limits[1]:g}" if limits else ""
                raise UsageError(f"{self.name}: {field.name} is {value!r}; it must be {kind}{allowed}")

    @property
    @abstractmethod
    def num_draws(self) -> int:
        """How many random words an image needs: at most 64."""

    @abstractmethod
    def apply(self, images: Tensor, words: Words) -> Tensor:
        """Augment a batch; an image's result depends on the image and its words alone.

        Args:
            images: uint8 [n, 3, height, width]; may be memory that is not ours to change.
            words: uint64 [n, num_draws], uniform.

        Returns:
            uint8 [n, 3, height', width'].
        """

    def num_outcomes(self, height: int, width: int) -> int | None:
        """How many different results one image of that size has; None for too many to matter."""
        return None

    def scaled(self, ratio: float) -> "Step":
        """The same step for images that are `ratio` times as large: whatever counts pixels is scaled."""
        return self

    def to_json(self) -> dict[str, Any]:
        return {"step": self.name, **dataclasses.asdict(self)}


def _fits(value: Any, kind: Any, limits: Range | None) -> bool:
    if isinstance(value, tuple):
        items = getattr(kind, "__args__", ())
        low_to_high = limits is None or len(value) != 2 or value[0] <= value[1]
        return len(value) == len(items) and all(map(_fits, value, items, [limits] * len(value))) and low_to_high
    if kind is float and type(value) is int:
        kind = int
    return type(value) is kind and (limits is None or bool(limits[0] <= value <= limits[1]))


def uniform(words: Words, low: int | float = 0.0, high: int | float = 1.0) -> np.ndarray:
    """Numbers in [low, high), from a word's upper 53 bits: float64, of the shape of the words."""
    return low + (high - low) * ((words >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def chance(words: Words, probability: int | float) -> np.ndarray:
    """True with a probability: bool, of the shape of the words."""
    return uniform(words) < probability
