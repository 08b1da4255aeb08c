"""Recipes: the named, serialisable list of augmentation steps that turns an image into a view.

A step draws its parameters from the view's stream at counters of its own, so that no step's draws depend
on another's or on the image size, and changes uint8 pixels in whole batches.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from gdkd_cache.errors import CacheError, SourceError, UsageError
from gdkd_cache.seeding import Words, draw_below
from gdkd_cache.spec import parse_spec

_COUNTERS_PER_STEP = 16


@runtime_checkable
class Step(Protocol):
    """One augmentation: a frozen dataclass whose fields are its whole configuration."""

    name: ClassVar[str]

    def apply(self, images: np.ndarray, state: Words, counter: int) -> np.ndarray:
        """Augment a batch.

        Args:
            images: uint8 [n, channel, height, width]; may be a view of memory that is not ours to change.
            state: uint64 [n], the streams.
            counter: first of the step's own 16 draws.

        Returns:
            uint8 [n, channel, height', width'].
        """
        ...

    def num_outcomes(self, height: int, width: int) -> int:
        """How many different results the step has for one image of that size."""
        ...


@dataclass(frozen=True)
class RandomCrop:
    """Pad with zeros on all sides, then crop a square at a uniformly drawn offset (as torchvision's RandomCrop)."""

    name: ClassVar[str] = "random_crop"
    size: int
    padding: int

    def __post_init__(self) -> None:
        if not (type(self.size) is type(self.padding) is int and self.size >= 1 and self.padding >= 0):
            raise UsageError(
                f"random_crop: size {self.size} and padding {self.padding}; whole numbers above 0 and at least 0"
            )

    def _offsets(self, extent: int) -> int:
        if self.padding > extent:
            raise SourceError(f"random_crop: a padding of {self.padding} is beyond the side of {extent} pixels")
        offsets = extent + 2 * self.padding - self.size + 1
        if offsets < 1:
            raise SourceError(
                f"random_crop: a side of {extent} pixels, padded by {self.padding}, is below the crop, {self.size}"
            )
        return offsets

    def apply(self, images: np.ndarray, state: Words, counter: int) -> np.ndarray:
        n, channels, height, width = images.shape
        p = self.padding
        y = draw_below(state, counter, self._offsets(height))
        x = draw_below(state, counter + 1, self._offsets(width))
        padded = np.zeros((n, channels, height + 2 * p, width + 2 * p), np.uint8)
        padded[:, :, p : p + height, p : p + width] = images
        windows = sliding_window_view(padded, (self.size, self.size), axis=(2, 3))
        return windows[np.arange(n), :, y, x]

    def num_outcomes(self, height: int, width: int) -> int:
        return self._offsets(height) * self._offsets(width)


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirror half of the views."""

    name: ClassVar[str] = "horizontal_flip"

    def apply(self, images: np.ndarray, state: Words, counter: int) -> np.ndarray:
        flip = draw_below(state, counter, 2).astype(bool)
        images = images.copy()
        images[flip] = images[flip, :, :, ::-1]
        return images

    def num_outcomes(self, height: int, width: int) -> int:
        return 2


_STEPS: dict[str, Callable[..., Step]] = {step.name: step for step in (RandomCrop, HorizontalFlip)}


@dataclass(frozen=True)
class Recipe:
    """A named list of steps; the list alone decides the pixels.

    Attributes:
        name: what the user asked for.
        steps: applied in order.
    """

    name: str
    steps: tuple[Step, ...]

    def apply(self, images: np.ndarray, state: Words) -> np.ndarray:
        """Augment uint8 [n, channel, height, width] with one stream an image; the result is contiguous."""
        for position, step in enumerate(self.steps):
            images = step.apply(images, state, position * _COUNTERS_PER_STEP)
        return np.ascontiguousarray(images)

    def num_views(self, height: int, width: int) -> int:
        """How many different views one image of that size has."""
        return int(np.prod([step.num_outcomes(height, width) for step in self.steps], dtype=object))

    def to_json(self) -> dict[str, Any]:
        steps = [{"step": step.name, **dataclasses.asdict(step)} for step in self.steps]  # pyright: ignore[reportArgumentType]
        return {"name": self.name, "steps": steps}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "Recipe":
        """Rebuild a recipe from a manifest.

        Raises:
            CacheError: an unknown step or option.
        """
        try:
            steps = []
            for fields in stored["steps"]:
                options = dict(fields)
                steps.append(_STEPS[options.pop("step")](**options))
            return cls(str(stored["name"]), tuple(steps))
        except (KeyError, TypeError, ValueError) as error:
            reason = str(error).split("\n")[0]
            raise CacheError(f"the manifest's recipe cannot be read: {reason}; it may need a newer version") from None


RECIPES = ("none", "crop-flip")


def open_recipe(spec: str, height: int, width: int) -> Recipe:
    """Make a recipe from a spec for images of one size.

    Args:
        spec: `none`, `crop-flip`, or `crop-flip:size=32,padding=4`.
        height, width: size of the source's images; crop-flip's defaults are the smaller side, and an
            eighth of it as padding (4 for 32x32).

    Raises:
        UsageError: an unknown recipe or option.
    """
    name, _, options = spec.partition(":")
    if name == "none":
        parse_spec("recipe none", options, {})
        return Recipe("none", ())
    if name == "crop-flip":
        size = min(height, width)
        values = parse_spec("recipe crop-flip", options, {"size": size, "padding": size // 8})
        crop = RandomCrop(size=int(values["size"]), padding=int(values["padding"]))
        return Recipe("crop-flip", (crop, HorizontalFlip()))
    raise UsageError(f"recipe is {name!r}; it must be one of {', '.join(RECIPES)}")
