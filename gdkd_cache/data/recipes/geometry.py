"""Crops, flips and resizes; a resize is that of torchvision's tensor kernels, with antialiasing stated."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

from gdkd_cache.data.recipes.step import Step, chance, uniform
from gdkd_cache.errors import SourceError, UsageError
from gdkd_cache.fields import option
from gdkd_cache.limits import LARGEST_SIDE
from gdkd_cache.seeding import Words, below

_ATTEMPTS = 10
INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
"""Those that tensors have."""


@dataclass(frozen=True)
class RandomCrop(Step):
    """Pad with zeros on all sides, then crop a square at a uniformly drawn offset (as torchvision's RandomCrop)."""

    integral: ClassVar[bool] = True
    sizing: ClassVar[bool] = True
    size: int = option(help="Side of the result, in pixels.", least=1, most=LARGEST_SIDE)
    padding: int = option(0, "Zeros on all sides, in pixels.", least=0, most=LARGEST_SIDE)

    @property
    def num_draws(self) -> int:
        return 2

    def _offsets(self, extent: int) -> int:
        if self.padding > extent:
            raise SourceError(f"random_crop: a padding of {self.padding} is beyond the side of {extent} pixels")
        offsets = extent + 2 * self.padding - self.size + 1
        if offsets < 1:
            raise SourceError(
                f"random_crop: a side of {extent} pixels, padded by {self.padding}, is below the crop, {self.size}"
            )
        return offsets

    def offsets(self, words: Words, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Top and left in the padded image: int64 [n] each."""
        return below(words[:, 0], self._offsets(height)), below(words[:, 1], self._offsets(width))

    def apply(self, images: Tensor, words: Words) -> Tensor:
        n, channels, height, width = images.shape
        top, left = self.offsets(words, height, width)
        p, size = self.padding, self.size
        padded = images.new_zeros(n, channels, height + 2 * p, width + 2 * p)
        padded[:, :, p : p + height, p : p + width] = images
        if images.device.type == "cpu":  # numpy gathers windows twice as fast as torch does
            windows = sliding_window_view(padded.numpy(), (size, size), axis=(2, 3))
            return torch.from_numpy(windows[np.arange(n), :, top, left])
        y = torch.from_numpy(top).to(images.device)[:, None] + torch.arange(size, device=images.device)
        x = torch.from_numpy(left).to(images.device)[:, None] + torch.arange(size, device=images.device)
        index = (y[:, :, None] * padded.shape[3] + x[:, None, :]).reshape(n, 1, -1).expand(-1, channels, -1)
        return padded.flatten(2).gather(2, index).view(n, channels, size, size)

    def num_outcomes(self, height: int, width: int) -> int:
        return self._offsets(height) * self._offsets(width)


@dataclass(frozen=True)
class HorizontalFlip(Step):
    """Mirror an image with a probability."""

    integral: ClassVar[bool] = True
    probability: float = option(0.5, "Of mirroring.", least=0, most=1)

    @property
    def num_draws(self) -> int:
        return 1

    def apply(self, images: Tensor, words: Words) -> Tensor:
        flip = np.flatnonzero(chance(words[:, 0], self.probability))
        flipped = images.clone()
        if images.device.type == "cpu":  # numpy indexes rows several times as fast
            flipped.numpy()[flip] = images.numpy()[flip, ..., ::-1]
        else:
            index = torch.from_numpy(flip).to(images.device)
            flipped[index] = images[index].flip(-1)
        return flipped

    def num_outcomes(self, height: int, width: int) -> int:
        return 2 if 0 < self.probability < 1 else 1


class Resampling(Step):
    """A step that makes a square of `size` pixels of any image, by resampling."""

    sizing: ClassVar[bool] = True
    size: int

    def at_size(self, size: int) -> "Resampling":
        """The same geometry, rendered with another number of pixels."""
        return replace(self, size=size)


@dataclass(frozen=True)
class RandomResizedCrop(Resampling):
    """Crop a box of random area and aspect ratio, and resize it to a square (as torchvision's RandomResizedCrop)."""

    size: int = option(help="Side of the result, in pixels.", least=1, most=LARGEST_SIDE)
    scale: tuple[float, float] = option(
        (0.08, 1.0), "Range of the box's area, as a share of the image's.", least=1e-4, most=1
    )
    ratio: tuple[float, float] = option(
        (3 / 4, 4 / 3), "Range of width / height, drawn uniformly in its logarithm.", least=0.01, most=100
    )
    interpolation: str = option("bilinear", "Of the resize.", choices=INTERPOLATIONS)
    antialias: bool = option(True, "Whether a resize to fewer pixels averages.")

    @property
    def num_draws(self) -> int:
        return 2 * _ATTEMPTS + 2

    def boxes(self, words: Words, height: int, width: int) -> np.ndarray:
        """The boxes: int64 [n, 4], top, left, height, width."""
        h, w, valid = random_boxes(words[:, : 2 * _ATTEMPTS], height, width, self.scale, self.ratio)
        valid &= (w <= width) & (h <= height)
        first = valid.argmax(1)[:, None]
        found = valid.any(1)
        low, high = self.ratio
        # The largest central box that has an allowed ratio.
        whole_w = min(width, round(height * high)) if width / height > high else width
        whole_h = min(height, round(width / low)) if width / height < low else height
        h = np.where(found, np.take_along_axis(h, first, 1)[:, 0], whole_h)
        w = np.where(found, np.take_along_axis(w, first, 1)[:, 0], whole_w)
        top = np.where(found, below(words[:, -2], height - h + 1), (height - h) // 2)
        left = np.where(found, below(words[:, -1], width - w + 1), (width - w) // 2)
        return np.stack([top, left, h, w], axis=1)

    def apply(self, images: Tensor, words: Words) -> Tensor:
        boxes = self.boxes(words, images.shape[2], images.shape[3]).tolist()
        mode = InterpolationMode(self.interpolation)
        size = [self.size, self.size]
        crops = [
            functional.resized_crop(image, top, left, height, width, size, mode, antialias=self.antialias)
            for image, (top, left, height, width) in zip(images, boxes, strict=True)
        ]
        return torch.stack(crops)


@dataclass(frozen=True)
class ResizeCenterCrop(Resampling):
    """Resize the shorter side to `resize`, then crop a centred square of `size`: how networks are evaluated."""

    size: int = option(help="Side of the result, in pixels.", least=1, most=LARGEST_SIDE)
    resize: int = option(help="What the shorter side is resized to, in pixels.", least=1, most=LARGEST_SIDE)
    interpolation: str = option("bilinear", "Of the resize.", choices=INTERPOLATIONS)
    antialias: bool = option(True, "Whether a resize to fewer pixels averages.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resize < self.size:
            raise UsageError(f"{self.name}: resize is {self.resize}; it must be at least the size, {self.size}")

    @property
    def num_draws(self) -> int:
        return 0

    def at_size(self, size: int) -> "ResizeCenterCrop":
        return replace(self, size=size, resize=round(self.resize * size / self.size))

    def apply(self, images: Tensor, words: Words) -> Tensor:
        mode = InterpolationMode(self.interpolation)
        images = functional.resize(images, [self.resize], mode, antialias=self.antialias)
        return functional.center_crop(images, [self.size, self.size])

    def num_outcomes(self, height: int, width: int) -> int:
        return 1


@dataclass(frozen=True)
class Resize(Resampling):
    """Resize to a square, whatever the aspect ratio was."""

    size: int = option(help="Side of the result, in pixels.", least=1, most=LARGEST_SIDE)
    interpolation: str = option("bilinear", "Of the resize.", choices=INTERPOLATIONS)
    antialias: bool = option(True, "Whether a resize to fewer pixels averages.")

    @property
    def num_draws(self) -> int:
        return 0

    def apply(self, images: Tensor, words: Words) -> Tensor:
        mode = InterpolationMode(self.interpolation)
        return functional.resize(images, [self.size, self.size], mode, antialias=self.antialias)

    def num_outcomes(self, height: int, width: int) -> int:
        return 1


def random_boxes(
    words: Words, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Attempts at boxes of random area and aspect ratio, from two words each.

    Args:
        words: uint64 [n, 2 * attempts].
        height, width: of the image.
        scale: range of the area, as a share of the image's.
        ratio: range of width / height.

    Returns:
        Heights, widths (int64 [n, attempts]) and whether they hold a pixel (bool, likewise).
    """
    area = height * width * uniform(words[:, 0::2], *scale)
    aspect = np.exp(uniform(words[:, 1::2], *np.log(ratio)))
    h, w = np.rint(np.sqrt(area / aspect)).astype(np.int64), np.rint(np.sqrt(area * aspect)).astype(np.int64)
    return h, w, (h > 0) & (w > 0)
