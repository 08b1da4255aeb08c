"""Changes of colour; pixels are those of torchvision.transforms.v2.functional on uint8 tensors."""

import itertools
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from gdkd_cache.data.recipes.step import Step, chance, uniform
from gdkd_cache.errors import UsageError
from gdkd_cache.fields import option
from gdkd_cache.seeding import Words, below

_ORDERS = tuple(itertools.permutations(range(4)))


@dataclass(frozen=True)
class ColorJitter(Step):
    """Change brightness, contrast, saturation and hue, each by its own random factor, in random order."""

    leaves_masks: ClassVar[bool] = True
    brightness: float = option(0.0, "Factors are uniform in [max(0, 1 - x), 1 + x].", least=0, most=10)
    contrast: float = option(0.0, "Likewise.", least=0, most=10)
    saturation: float = option(0.0, "Likewise.", least=0, most=10)
    hue: float = option(0.0, "The shift is uniform in [-x, x], in turns of the colour wheel.", least=0, most=0.5)
    probability: float = option(1.0, "Of changing anything.", least=0, most=1)

    @property
    def num_draws(self) -> int:
        return 6

    def factors(self, words: Words) -> np.ndarray:
        """Brightness, contrast, saturation and hue: float64 [n, 4]."""
        widths = (self.brightness, self.contrast, self.saturation)
        columns = [uniform(words[:, i], max(0.0, 1 - x), 1 + x) for i, x in enumerate(widths)]
        return np.stack([*columns, uniform(words[:, 3], -self.hue, self.hue)], axis=1)

    def apply(self, images: Tensor, words: Words) -> Tensor:
        factors, orders = self.factors(words).tolist(), below(words[:, 4], len(_ORDERS)).tolist()
        changes = (
            (self.brightness, functional.adjust_brightness),
            (self.contrast, functional.adjust_contrast),
            (self.saturation, functional.adjust_saturation),
            (self.hue, functional.adjust_hue),
        )
        images = images.clone()
        for row in np.flatnonzero(chance(words[:, 5], self.probability)).tolist():
            image = images[row]
            for kind in _ORDERS[orders[row]]:
                width, change = changes[kind]
                if width:
                    image = change(image, factors[row][kind])
            images[row] = image
        return images


@dataclass(frozen=True)
class _Sometimes(Step):
    """A change of colours that is made with a probability, alike for every image."""

    leaves_masks: ClassVar[bool] = True
    probability: float = option(0.5, "Of the change.", least=0, most=1)

    @abstractmethod
    def change(self, images: Tensor) -> Tensor:
        """The change, for uint8 [n, 3, height, width]."""

    @property
    def num_draws(self) -> int:
        return 1

    def apply(self, images: Tensor, words: Words) -> Tensor:
        rows = torch.from_numpy(np.flatnonzero(chance(words[:, 0], self.probability))).to(images.device)
        images = images.clone()
        if len(rows):
            images[rows] = self.change(images[rows])
        return images

    def num_outcomes(self, height: int, width: int) -> int:
        return 2 if 0 < self.probability < 1 else 1


@dataclass(frozen=True)
class RandomGrayscale(_Sometimes):
    """Replace the colours by their luma (as torchvision's RandomGrayscale)."""

    probability: float = option(0.1, "Of the change.", least=0, most=1)

    def change(self, images: Tensor) -> Tensor:
        return functional.rgb_to_grayscale(images, num_output_channels=3)


@dataclass(frozen=True)
class Solarize(_Sometimes):
    """Invert all values from the threshold upwards."""

    integral: ClassVar[bool] = True
    threshold: int = option(128, "The lowest value that is inverted.", least=0, most=255)

    def change(self, images: Tensor) -> Tensor:
        return functional.solarize(images, self.threshold)


@dataclass(frozen=True)
class Posterize(_Sometimes):
    """Keep the upper bits of every value."""

    integral: ClassVar[bool] = True
    bits: int = option(4, "How many are kept.", least=0, most=8)

    def change(self, images: Tensor) -> Tensor:
        return functional.posterize(images, self.bits)


@dataclass(frozen=True)
class Equalize(_Sometimes):
    """Flatten the histogram of every channel."""

    def change(self, images: Tensor) -> Tensor:
        return functional.equalize(images)


@dataclass(frozen=True)
class AutoContrast(_Sometimes):
    """Stretch every channel to the whole range."""

    def change(self, images: Tensor) -> Tensor:
        return functional.autocontrast(images)


@dataclass(frozen=True)
class GaussianBlur(Step):
    """Blur with a Gaussian whose deviation is uniform in `sigma`, in pixels."""

    leaves_masks: ClassVar[bool] = True
    kernel: int = option(23, "Side of the kernel in pixels; odd.", least=1, most=255)
    sigma: tuple[float, float] = option((0.1, 2.0), "Range of the deviation, in pixels.", least=1e-3, most=100)
    probability: float = option(1.0, "Of blurring at all.", least=0, most=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel % 2 == 0:
            raise UsageError(f"{self.name}: kernel is {self.kernel}; it must be odd")

    @property
    def num_draws(self) -> int:
        return 2

    def scaled(self, ratio: float) -> "GaussianBlur":
        kernel = 2 * round((self.kernel * ratio - 1) / 2) + 1
        return replace(self, kernel=max(kernel, 1), sigma=(self.sigma[0] * ratio, self.sigma[1] * ratio))

    def sigmas(self, words: Words) -> np.ndarray:
        """Deviations in pixels: float64 [n]."""
        return uniform(words[:, 0], *self.sigma)

    def apply(self, images: Tensor, words: Words) -> Tensor:
        sigmas = self.sigmas(words).tolist()
        images = images.clone()
        for row in np.flatnonzero(chance(words[:, 1], self.probability)).tolist():
            images[row] = functional.gaussian_blur(images[row], [self.kernel, self.kernel], [sigmas[row], sigmas[row]])
        return images
