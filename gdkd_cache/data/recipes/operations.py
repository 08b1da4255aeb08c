"""The operations that augmentation policies choose from, on whole batches: one call for all images of one kind.

Names, magnitudes and pixels are torchvision's (transforms.v2, tensor kernels). Nearest-neighbour geometry becomes a
table of source pixels, computed once from torchvision's own kernel.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

Magnitudes = Callable[[int, int, int], np.ndarray]
"""(bins, height, width) -> float64 [bins]."""

Space = dict[str, Magnitudes | None]
"""Operation names, in the order that they are drawn in, with their magnitudes; None for those that have none."""

SIGNED = frozenset(
    {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness"}
)
"""Operations whose magnitude is negated half of the time."""

_GEOMETRY = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


def linear(low: float, high: float) -> Magnitudes:
    """Magnitudes that do not depend on the image."""
    return lambda bins, height, width: _linspace(low, high, bins)


def of_width(share: float) -> Magnitudes:
    """Pixels up to a share of the width."""
    return lambda bins, height, width: _linspace(0.0, share * width, bins)


def of_height(share: float) -> Magnitudes:
    """Pixels up to a share of the height."""
    return lambda bins, height, width: _linspace(0.0, share * height, bins)


def bits(most: int, span: int) -> Magnitudes:
    """Bits that posterize keeps, from `most` downwards."""
    return lambda bins, height, width: np.rint(most - np.arange(bins) * span / (bins - 1))


def _linspace(low: float, high: float, bins: int) -> np.ndarray:
    # Rounded, so that what should be a whole number of pixels is one.
    return np.round(low + (high - low) * np.arange(bins) / max(bins - 1, 1), 6)


def operate(images: Tensor, kinds: list[tuple[str, float]], interpolation: InterpolationMode) -> Tensor:
    """Apply one operation to each image.

    Args:
        images: uint8 [n, 3, height, width].
        kinds: the operation and signed magnitude of each image; all of one kind are done in one call.
        interpolation: of geometric operations.

    Returns:
        uint8 [n, 3, height, width].
    """
    groups: dict[tuple[str, float], list[int]] = {}
    for row, kind in enumerate(kinds):
        groups.setdefault(kind, []).append(row)
    result = images.clone()
    for (name, magnitude), rows in groups.items():
        if name != "Identity":
            index = torch.tensor(rows, device=images.device)
            result[index] = _operation(images[index], name, magnitude, interpolation)
    return result


def _operation(images: Tensor, name: str, magnitude: float, interpolation: InterpolationMode) -> Tensor:
    if name in _GEOMETRY:
        if interpolation is InterpolationMode.NEAREST:
            height, width = images.shape[2:]
            return _gather(images, _source_pixels(name, magnitude, height, width))
        return _geometry(images, name, magnitude, interpolation)
    if name == "Brightness":
        return functional.adjust_brightness(images, 1.0 + magnitude)
    if name == "Color":
        return functional.adjust_saturation(images, 1.0 + magnitude)
    if name == "Contrast":
        return functional.adjust_contrast(images, 1.0 + magnitude)
    if name == "Sharpness":
        return functional.adjust_sharpness(images, 1.0 + magnitude)
    if name == "Posterize":
        return functional.posterize(images, int(magnitude))
    if name == "Solarize":
        return functional.solarize(images, 255 * magnitude)
    if name == "AutoContrast":
        return functional.autocontrast(images)
    if name == "Equalize":
        return functional.equalize(images)
    assert name == "Invert", name
    return functional.invert(images)


def _geometry(images: Tensor, name: str, magnitude: float, interpolation: InterpolationMode) -> Tensor:
    if name == "Rotate":
        return functional.rotate(images, magnitude, interpolation)
    shear, translate = [0.0, 0.0], [0, 0]
    axis = 0 if name.endswith("X") else 1
    if name.startswith("Shear"):
        shear[axis] = math.degrees(math.atan(magnitude))
        # Around the corner, as in AutoAugment's own code.
        return functional.affine(images, 0.0, translate, 1.0, shear, interpolation, center=[0, 0])  # pyright: ignore[reportArgumentType]
    translate[axis] = int(magnitude)
    return functional.affine(images, 0.0, translate, 1.0, shear, interpolation)  # pyright: ignore[reportArgumentType]


@lru_cache(maxsize=256)
def _source_pixels(name: str, magnitude: float, height: int, width: int) -> Tensor:
    """For each pixel of the result, which pixel of the image it is: int64 [height * width]; the last + 1 is none."""
    # Numbered from 1, because torchvision fills with 0. float32 numbers 2**24 pixels exactly.
    numbers = torch.arange(1, height * width + 1, dtype=torch.float32).view(1, 1, height, width)
    source = _geometry(numbers, name, magnitude, InterpolationMode.NEAREST).flatten().long()
    return torch.where(source > 0, source - 1, height * width)


def _gather(images: Tensor, source: Tensor) -> Tensor:
    flat = torch.cat([images.flatten(2), images.new_zeros(*images.shape[:2], 1)], dim=2)
    return flat.index_select(2, source.to(images.device)).view(images.shape)
