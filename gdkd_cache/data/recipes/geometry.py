"""Crops, flips and resizes; a resize is that of torchvision's tensor kernels, with antialiasing stated."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

from gdkd_cache.data.masks import IGNORE, centres
from gdkd_cache.data.recipes.step import NEAREST, Step, chance, uniform
from gdkd_cache.errors import SourceError, UsageError
from gdkd_cache.fields import option
from gdkd_cache.limits import LARGEST_SIDE
from gdkd_cache.seeding import Words, below

_ATTEMPTS = 10
INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
"""Those that tensors have."""
_MIRRORED = 77
"""The nearness of an image and its mirror image."""
_REACH = 2 / 32
"""How far apart two crops are, in parts of their side, when nearness has fallen to exp(-1/2)."""
_SHARPNESS = 8
_OVERLAPS = 1024
_LOG_PARTS = 4096
_SQUARES = 2**16


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

    def place(self, words: Words, sizes: np.ndarray) -> np.ndarray:
        extents = np.maximum(sizes + 2 * self.padding - self.size + 1, 1)
        return below(words, extents)

    def nearness(self, places: np.ndarray, others: np.ndarray) -> np.ndarray:
        table = _by_distance()
        parts = np.square(places - others).sum(1) * _SQUARES // self.size**2
        return table[np.minimum(parts, len(table) - 1)]

    def resized(self, sizes: np.ndarray) -> np.ndarray:
        return np.full_like(sizes, self.size)

    def offsets(self, words: Words, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Top and left in the padded image: int64 [n] each."""
        return below(words[:, 0], self._offsets(height)), below(words[:, 1], self._offsets(width))

    def apply(self, images: Tensor, words: Words) -> Tensor:
        return self._crops(images, words, 0)

    def apply_masks(self, masks: Tensor, words: Words) -> Tensor:
        return self._crops(masks[:, None], words, IGNORE)[:, 0]

    def _crops(self, images: Tensor, words: Words, padding: int) -> Tensor:
        n, channels, height, width = images.shape
        top, left = self.offsets(words, height, width)
        p, size = self.padding, self.size
        padded = images.new_full((n, channels, height + 2 * p, width + 2 * p), padding)
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

    def apply_masks(self, masks: Tensor, words: Words) -> Tensor:
        return self.apply(masks, words)

    def place(self, words: Words, sizes: np.ndarray) -> np.ndarray:
        return chance(words[:, 0], self.probability).astype(np.int64)

    def nearness(self, places: np.ndarray, others: np.ndarray) -> np.ndarray:
        return np.where(places == others, NEAREST, _MIRRORED)

    def num_outcomes(self, height: int, width: int) -> int:
        return 2 if 0 < self.probability < 1 else 1


class Resampling(Step):
    """A step that makes a square of `size` pixels of any image, by resampling."""

    sizing: ClassVar[bool] = True
    size: int
    interpolation: str

    def at_size(self, size: int) -> "Resampling":
        """The same geometry, rendered with another number of pixels."""
        return replace(self, size=size)

    def resized(self, sizes: np.ndarray) -> np.ndarray:
        return np.full_like(sizes, self.size)


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
        return self._boxes(words, np.array([[height, width]]), aspects(words[:, 1 : 2 * _ATTEMPTS : 2], self.ratio))

    def _boxes(self, words: Words, sizes: np.ndarray, aspect: np.ndarray) -> np.ndarray:
        """The boxes in images of these sizes, int64 [n or 1, 2], of these ratios, float64 [n, attempts]."""
        height, width = sizes.T
        h, w, valid = random_boxes(words[:, : 2 * _ATTEMPTS : 2], height, width, self.scale, aspect)
        valid &= (w <= width[:, None]) & (h <= height[:, None])
        first = valid.argmax(1)[:, None]
        found = valid.any(1)
        low, high = self.ratio
        # The largest central box that has an allowed ratio.
        tall, wide = (np.rint(limit).astype(np.int64) for limit in (width / low, height * high))
        whole_w = np.where(width / height > high, np.minimum(width, wide), width)
        whole_h = np.where(width / height < low, np.minimum(height, tall), height)
        h = np.where(found, np.take_along_axis(h, first, 1)[:, 0], whole_h)
        w = np.where(found, np.take_along_axis(w, first, 1)[:, 0], whole_w)
        top = np.where(found, below(words[:, -2], height - h + 1), (height - h) // 2)
        left = np.where(found, below(words[:, -1], width - w + 1), (width - w) // 2)
        return np.stack([top, left, h, w], axis=1)

    def place(self, words: Words, sizes: np.ndarray) -> np.ndarray:
        # All that rounds alike everywhere: exp does not, and so comes from a table.
        return self._boxes(words, sizes, tabled_aspects(words[:, 1 : 2 * _ATTEMPTS : 2], self.ratio))

    def nearness(self, places: np.ndarray, others: np.ndarray) -> np.ndarray:
        (top, left, h, w), (top2, left2, h2, w2) = places.T, others.T
        overlap_h = np.minimum(top + h, top2 + h2) - np.maximum(top, top2)
        overlap_w = np.minimum(left + w, left2 + w2) - np.maximum(left, left2)
        shared = np.maximum(overlap_h, 0) * np.maximum(overlap_w, 0)
        return _by_overlap()[shared * _OVERLAPS // (h * w + h2 * w2 - shared)]

    def apply(self, images: Tensor, words: Words) -> Tensor:
        boxes = self.boxes(words, images.shape[2], images.shape[3]).tolist()
        mode = InterpolationMode(self.interpolation)
        size = [self.size, self.size]
        crops = [
            functional.resized_crop(image, top, left, height, width, size, mode, antialias=self.antialias)
            for image, (top, left, height, width) in zip(images, boxes, strict=True)
        ]
        return torch.stack(crops)

    def apply_masks(self, masks: Tensor, words: Words) -> Tensor:
        boxes = self.boxes(words, masks.shape[1], masks.shape[2]).tolist()
        size = (self.size, self.size)
        return torch.stack(
            [
                resize_mask(mask[top : top + height, left : left + width], size, self.interpolation)
                for mask, (top, left, height, width) in zip(masks, boxes, strict=True)
            ]
        )


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

    def apply_masks(self, masks: Tensor, words: Words) -> Tensor:
        short, long = sorted(masks.shape[1:])
        other = int(self.resize * long / short)  # as torchvision has it
        size = (self.resize, other) if masks.shape[1] == short else (other, self.resize)
        return functional.center_crop(resize_mask(masks, size, self.interpolation), [self.size, self.size])

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

    def apply_masks(self, masks: Tensor, words: Words) -> Tensor:
        return resize_mask(masks, (self.size, self.size), self.interpolation)

    def num_outcomes(self, height: int, width: int) -> int:
        return 1


def resize_mask(masks: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """Masks of another size, of the image's nearest pixels: int16 [..., height, width] -> [..., *size].

    Args:
        masks: the masks.
        size: height and width.
        interpolation: of their images; where that is nearest, pixels are those that the images show.
    """
    rows, columns = (
        _nearest_pixels(old, new, interpolation).to(masks.device)
        for old, new in zip(masks.shape[-2:], size, strict=True)
    )
    return masks.index_select(-2, rows).index_select(-1, columns)


@lru_cache(maxsize=256)
def _nearest_pixels(old: int, new: int, interpolation: str) -> Tensor:
    """For each of the new pixels of a side, which of the old ones its centre lies in: int64 [new]."""
    if interpolation == "nearest":  # torch looks where pixels begin, and rounds in float32
        numbers = torch.arange(old, dtype=torch.float32).view(1, 1, old, 1)
        return functional.resize(numbers, [new, 1], InterpolationMode.NEAREST).flatten().long()
    return torch.from_numpy(centres(old, new))


def aspects(words: Words, ratio: tuple[float, float]) -> np.ndarray:
    """Ratios in this range, uniform in their logarithm: float64, of the shape of the words."""
    return np.exp(uniform(words, *np.log(ratio)))


def tabled_aspects(words: Words, ratio: tuple[float, float]) -> np.ndarray:
    """`aspects` to one part in 4096, the same to the bit on every machine."""
    low, high = (round(math.log(limit) * _LOG_PARTS) for limit in ratio)
    drawn = (words >> np.uint64(40)).astype(np.int64)
    return _by_logarithm()[low + ((high - low) * drawn >> 24) + len(_by_logarithm()) // 2]


@lru_cache(maxsize=1)
def _by_logarithm() -> np.ndarray:
    """exp(i / 4096), rounded so that no library's last bit shows; the middle is i = 0."""
    most = math.ceil(math.log(100) * _LOG_PARTS) + 1
    return np.array([round(math.exp(i / _LOG_PARTS) * 2**16) / 2**16 for i in range(-most, most + 1)])


@lru_cache(maxsize=1)
def _by_overlap() -> np.ndarray:
    """Nearness by intersection over union, in 1024ths."""
    table = [round(NEAREST * math.exp(_SHARPNESS * (i / _OVERLAPS - 1))) for i in range(_OVERLAPS + 1)]
    return np.maximum(table, 1)


@lru_cache(maxsize=1)
def _by_distance() -> np.ndarray:
    """Nearness by the squared distance of two crops, in 65536ths of their squared side; the last for all beyond."""
    table = [round(NEAREST * math.exp(-i / _SQUARES / (2 * _REACH**2))) for i in range(4096)]
    return np.maximum(table, 1)


def random_boxes(
    words: Words,
    height: int | np.ndarray,
    width: int | np.ndarray,
    scale: tuple[float, float],
    aspect: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Attempts at boxes of random area.

    Args:
        words: uint64 [n, attempts].
        height, width: of the image, or int64 [n] of each.
        scale: range of the area, as a share of the image's.
        aspect: width / height, float64 [n, attempts].

    Returns:
        Heights, widths (int64 [n, attempts]) and whether they hold a pixel (bool, likewise).
    """
    area = np.reshape(height * width, (-1, 1)) * uniform(words, *scale)
    h, w = np.rint(np.sqrt(area / aspect)).astype(np.int64), np.rint(np.sqrt(area * aspect)).astype(np.int64)
    return h, w, (h > 0) & (w > 0)
