"""What every step of a recipe is, and how it reads its random words."""

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from gdkd_cache.data.recipes.registry import STEPS
from gdkd_cache.errors import UsageError
from gdkd_cache.fields import check_fields
from gdkd_cache.seeding import Words

MAX_DRAWS = 64
NEAREST = 256
"""The nearness of two draws that show the same."""


@dataclass(frozen=True)
class Step(ABC):
    """One augmentation: a frozen dataclass whose fields are its whole configuration, checked when it is made.

    A pair of numbers is a range, and must rise.

    Raises:
        UsageError: a field made by `option` has another type, or is out of range; it names both.
    """

    integral: ClassVar[bool] = False
    """Whether pixels come from integers and indexing alone, so that every device gives the same."""
    sizing: ClassVar[bool] = False
    """Whether images of any size come out in one size."""
    leaves_masks: ClassVar[bool] = False
    """Whether every pixel stays where it is, so that masks stay what they are."""

    def __post_init__(self) -> None:
        check_fields(self, self.name)
        for name, value in vars(self).items():
            if isinstance(value, tuple) and len(value) == 2 and value[0] > value[1]:
                raise UsageError(f"{self.name}: {name} is {value!r}; it must rise")

    @property
    def name(self) -> str:
        """How recipes and manifests name it."""
        return STEPS.name_of(type(self))

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

    def apply_masks(self, masks: Tensor, words: Words) -> Tensor:
        """What becomes of the masks of images: each pixel is of the class of what is seen there, or `IGNORE`.

        Args:
            masks: int16 [n, height, width], of the size of the images that come to this step; perhaps not ours to
                change.
            words: as for `apply`.

        Returns:
            int16 [n, height', width'], of the size of the images that `apply` gives.
        """
        assert self.leaves_masks
        return masks

    @property
    def takes_masks(self) -> bool:
        """Whether it says what becomes of masks."""
        return self.leaves_masks or type(self).apply_masks is not Step.apply_masks

    @property
    def needs_masks(self) -> bool:
        """Whether it is only for images that have masks."""
        return False

    def decided(self, masks: Tensor, words: Words) -> Words:
        """The words that `apply` and `apply_masks` are given, where masks have a say in what is drawn."""
        return words

    def place(self, words: Words, sizes: np.ndarray) -> np.ndarray | None:
        """Where a draw looks, in whole numbers that are the same on every machine; None for a step that looks nowhere.

        Args:
            words: as for `apply`.
            sizes: int64 [n, 2], height and width of each image when it comes to this step.

        Returns:
            int64 [n, ...], as `nearness` takes it.
        """
        return None

    def nearness(self, places: np.ndarray, others: np.ndarray) -> np.ndarray:
        """How much two draws show of the same, by their places: int64 [n] in 1..256, alike both ways round."""
        return np.full(len(places), NEAREST)

    def resized(self, sizes: np.ndarray) -> np.ndarray:
        """What becomes of the images' heights and widths, int64 [n, 2]."""
        return sizes

    def num_outcomes(self, height: int, width: int) -> int | None:
        """How many different results one image of that size has; None for too many to matter."""
        return None

    def scaled(self, ratio: float) -> "Step":
        """The same step for images that are `ratio` times as large: whatever counts pixels is scaled."""
        return self

    def to_json(self) -> dict[str, Any]:
        return {"step": self.name, **dataclasses.asdict(self)}


def uniform(words: Words, low: int | float = 0.0, high: int | float = 1.0) -> np.ndarray:
    """Numbers in [low, high), from a word's upper 53 bits: float64, of the shape of the words."""
    return low + (high - low) * ((words >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def chance(words: Words, probability: int | float) -> np.ndarray:
    """True with a probability: bool, of the shape of the words."""
    return uniform(words) < probability
