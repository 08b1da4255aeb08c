"""Rectangles of images of any size, as networks for dense prediction are trained and evaluated on."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

from gdkd_cache.data.masks import IGNORE
from gdkd_cache.data.recipes.geometry import INTERPOLATIONS, resize_mask
from gdkd_cache.data.recipes.step import Step, uniform
from gdkd_cache.fields import option
from gdkd_cache.limits import LARGEST_SIDE
from gdkd_cache.seeding import Words, below

_ATTEMPTS = 10
_IMAGENET_MEAN = (124, 116, 104)


@dataclass(frozen=True)
class ScaleCrop(Step):
    """Enlarge or reduce an image by a random factor, and crop a rectangle at a uniformly drawn offset.

    What is cropped is cut out first, and resized alone: of an image enlarged by s it is a box of round(height / s) x
    round(width / s) pixels, anywhere inside. Where the image is smaller than the box, what it lacks at the bottom and
    on the right is filled, and its mask ignores that.

    `class_share` is mmsegmentation's `cat_max_ratio`: of ten offsets, the first at which no class has more of the
    labelled pixels, and there are any; else the last.
    """

    sizing: ClassVar[bool] = True
    height: int = option(help="Of the result, in pixels.", least=1, most=LARGEST_SIDE)
    width: int = option(help="Likewise.", least=1, most=LARGEST_SIDE)
    scale: tuple[float, float] = option((0.5, 2.0), "Range of the factor, drawn uniformly.", least=0.01, most=100)
    class_share: float = option(
        1.0, "The largest share of a crop's labelled pixels that one class may have, where it can be.", above=0, most=1
    )
    fill: tuple[int, int, int] = option(
        _IMAGENET_MEAN, "Red, green and blue beyond the image; ImageNet's mean.", least=0, most=255
    )
    interpolation: str = option("bilinear", "Of the resize.", choices=INTERPOLATIONS)
    antialias: bool = option(True, "Whether a resize to fewer pixels averages.")

    @property
    def num_draws(self) -> int:
        return 1 + 2 * _ATTEMPTS

    @property
    def needs_masks(self) -> bool:
        return self.class_share < 1

    def boxes(self, words: Words, height: int, width: int) -> np.ndarray:
        """What is cut out of images of a size, and what it is resized to: int64 [n, 6], top, left, height and width
        there, height and width in the result."""
        scales = uniform(words[:, 0], *self.scale)
        sides = []
        for extent, wanted, word in ((height, self.height, words[:, 1]), (width, self.width, words[:, 2])):
            whole = np.maximum(np.rint(wanted / scales).astype(np.int64), 1)
            cut = np.minimum(whole, extent)
            seen = np.maximum((2 * cut * wanted + whole) // (2 * whole), 1)  # rounded; all of it where nothing lacks
            sides.append((below(word, extent - cut + 1), cut, seen))
        (top, cut_h, seen_h), (left, cut_w, seen_w) = sides
        return np.stack([top, left, cut_h, cut_w, seen_h, seen_w], axis=1)

    def apply(self, images: Tensor, words: Words) -> Tensor:
        fill = images.new_tensor(self.fill)[:, None, None]
        result = fill.expand(len(images), -1, self.height, self.width).clone()
        mode = InterpolationMode(self.interpolation)
        boxes = self.boxes(words, images.shape[2], images.shape[3]).tolist()
        for view, image, (top, left, cut_h, cut_w, seen_h, seen_w) in zip(result, images, boxes, strict=True):
            size = [seen_h, seen_w]
            view[:, :seen_h, :seen_w] = functional.resized_crop(
                image, top, left, cut_h, cut_w, size, mode, antialias=self.antialias
            )
        return result

    def apply_masks(self, masks: Tensor, words: Words) -> Tensor:
        result = masks.new_full((len(masks), self.height, self.width), IGNORE)
        boxes = self.boxes(words, masks.shape[1], masks.shape[2]).tolist()
        for view, mask, (top, left, cut_h, cut_w, seen_h, seen_w) in zip(result, masks, boxes, strict=True):
            cut = mask[top : top + cut_h, left : left + cut_w]
            view[:seen_h, :seen_w] = resize_mask(cut, (seen_h, seen_w), self.interpolation)
        return result

    def decided(self, masks: Tensor, words: Words) -> Words:
        """The words with each image's chosen offset as its first; the masks alone choose."""
        if not self.needs_masks:
            return words
        decided = words.copy()
        for row in range(len(words)):
            for attempt in range(_ATTEMPTS):
                decided[row, 1:3] = words[row, 1 + 2 * attempt : 3 + 2 * attempt]
                crop = self.apply_masks(masks[row : row + 1], decided[row : row + 1])
                counts = torch.bincount(crop[crop != IGNORE].long())
                if len(counts) and int(counts.max()) <= self.class_share * int(counts.sum()):
                    break
        return decided

    def resized(self, sizes: np.ndarray) -> np.ndarray:
        return np.broadcast_to([self.height, self.width], sizes.shape)


@dataclass(frozen=True)
class ResizeTo(Step):
    """Resize to a rectangle, whatever the aspect ratio was."""

    sizing: ClassVar[bool] = True
    height: int = option(help="Of the result, in pixels.", least=1, most=LARGEST_SIDE)
    width: int = option(help="Likewise.", least=1, most=LARGEST_SIDE)
    interpolation: str = option("bilinear", "Of the resize.", choices=INTERPOLATIONS)
    antialias: bool = option(True, "Whether a resize to fewer pixels averages.")

    @property
    def num_draws(self) -> int:
        return 0

    def apply(self, images: Tensor, words: Words) -> Tensor:
        mode = InterpolationMode(self.interpolation)
        return functional.resize(images, [self.height, self.width], mode, antialias=self.antialias)

    def apply_masks(self, masks: Tensor, words: Words) -> Tensor:
        return resize_mask(masks, (self.height, self.width), self.interpolation)

    def resized(self, sizes: np.ndarray) -> np.ndarray:
        return np.broadcast_to([self.height, self.width], sizes.shape)

    def num_outcomes(self, height: int, width: int) -> int:
        return 1
