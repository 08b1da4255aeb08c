"""Boxes that are blanked, in pixels, before normalisation."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from gdkd_cache.data.recipes.geometry import aspects, random_boxes
from gdkd_cache.data.recipes.step import Step, chance
from gdkd_cache.fields import option
from gdkd_cache.limits import LARGEST_SIDE
from gdkd_cache.seeding import Words, below

_ATTEMPTS = 10


@dataclass(frozen=True)
class RandomErasing(Step):
    """Blank a box of random area, aspect ratio and place (as torchvision's RandomErasing)."""

    probability: float = option(0.5, "Of blanking.", least=0, most=1)
    scale: tuple[float, float] = option(
        (0.02, 0.33), "Range of the box's area, as a share of the image's.", least=1e-4, most=1
    )
    ratio: tuple[float, float] = option(
        (0.3, 3.3), "Range of width / height, drawn uniformly in its logarithm.", least=0.01, most=100
    )
    value: int = option(0, "What all its pixels become.", least=0, most=255)

    @property
    def num_draws(self) -> int:
        return 2 * _ATTEMPTS + 3

    def boxes(self, words: Words, height: int, width: int) -> np.ndarray:
        """The boxes: int64 [n, 4], top, left, height, width; height and width are 0 where nothing is blanked."""
        # torchvision's aspect ratio here is height / width.
        areas, ratios = words[:, : 2 * _ATTEMPTS : 2], words[:, 1 : 2 * _ATTEMPTS : 2]
        w, h, valid = random_boxes(areas, height, width, self.scale, aspects(ratios, self.ratio))
        valid &= (h < height) & (w < width)
        first = valid.argmax(1)[:, None]
        wanted = valid.any(1) & chance(words[:, -1], self.probability)
        h = np.where(wanted, np.take_along_axis(h, first, 1)[:, 0], 0)
        w = np.where(wanted, np.take_along_axis(w, first, 1)[:, 0], 0)
        return np.stack([below(words[:, -3], height - h + 1), below(words[:, -2], width - w + 1), h, w], axis=1)

    def apply(self, images: Tensor, words: Words) -> Tensor:
        top, left, h, w = self.boxes(words, images.shape[2], images.shape[3]).T
        return images.masked_fill(inside(images, top, left, top + h, left + w), self.value)


@dataclass(frozen=True)
class Cutout(Step):
    """Blank a square around a uniformly drawn pixel, cut off at the borders (DeVries and Taylor, 2017)."""

    integral: ClassVar[bool] = True
    size: int = option(help="Side of the square, in pixels.", least=1, most=LARGEST_SIDE)
    value: int = option(0, "What all its pixels become.", least=0, most=255)

    @property
    def num_draws(self) -> int:
        return 2

    def scaled(self, ratio: float) -> "Cutout":
        return replace(self, size=max(round(self.size * ratio), 1))

    def apply(self, images: Tensor, words: Words) -> Tensor:
        top = below(words[:, 0], images.shape[2]) - self.size // 2
        left = below(words[:, 1], images.shape[3]) - self.size // 2
        return images.masked_fill(inside(images, top, left, top + self.size, left + self.size), self.value)

    def num_outcomes(self, height: int, width: int) -> int:
        return height * width


def inside(images: Tensor, top: np.ndarray, left: np.ndarray, bottom: np.ndarray, right: np.ndarray) -> Tensor:
    """Which pixels lie in each image's box: bool [n, 1, height, width], on the images' device.

    Args:
        images: [n, channel, height, width].
        top, left, bottom, right: int64 [n]; may lie outside the image; bottom and right are excluded.
    """
    y, x = np.arange(images.shape[2]), np.arange(images.shape[3])
    rows = (y >= top[:, None]) & (y < bottom[:, None])
    columns = (x >= left[:, None]) & (x < right[:, None])
    return (
        torch.from_numpy(rows).to(images.device)[:, None, :, None]
        & torch.from_numpy(columns).to(images.device)[:, None, None, :]
    )
