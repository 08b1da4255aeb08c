"""AutoAugment, RandAugment, TrivialAugmentWide and AugMix, with the distributions of torchvision.transforms.v2."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode

from gdkd_cache.data.recipes.geometry import INTERPOLATIONS
from gdkd_cache.data.recipes.operations import SIGNED, Space, bits, linear, of_height, of_width, operate
from gdkd_cache.data.recipes.step import MAX_DRAWS, Step, chance, uniform
from gdkd_cache.errors import UsageError
from gdkd_cache.fields import option
from gdkd_cache.seeding import Words, below

_RAND: Space = {
    "Identity": None,
    "ShearX": linear(0.0, 0.3),
    "ShearY": linear(0.0, 0.3),
    "TranslateX": of_width(150 / 331),
    "TranslateY": of_height(150 / 331),
    "Rotate": linear(0.0, 30.0),
    "Brightness": linear(0.0, 0.9),
    "Color": linear(0.0, 0.9),
    "Contrast": linear(0.0, 0.9),
    "Sharpness": linear(0.0, 0.9),
    "Posterize": bits(8, 4),
    "Solarize": linear(1.0, 0.0),
    "AutoContrast": None,
    "Equalize": None,
}
_AUTO: Space = {name: magnitudes for name, magnitudes in _RAND.items() if name != "Identity"} | {"Invert": None}
_AUGMIX: Space = {name: magnitudes for name, magnitudes in _RAND.items() if name != "Identity"} | {
    "TranslateX": of_width(1 / 3),
    "TranslateY": of_height(1 / 3),
    "Posterize": bits(4, 4),
}

# Two operations each, as (name, probability, magnitude of 0..9): tables 7 and 9 of Cubuk et al., 2019.
_POLICIES: dict[str, str] = {
    "cifar10": """
        Invert .1 0 Contrast .2 6, Rotate .7 2 TranslateX .3 9, Sharpness .8 1 Sharpness .9 3,
        ShearY .5 8 TranslateY .7 9, AutoContrast .5 0 Equalize .9 0, ShearY .2 7 Posterize .3 7,
        Color .4 3 Brightness .6 7, Sharpness .3 9 Brightness .7 9, Equalize .6 0 Equalize .5 0,
        Contrast .6 7 Sharpness .6 5, Color .7 7 TranslateX .5 8, Equalize .3 0 AutoContrast .4 0,
        TranslateY .4 3 Sharpness .2 6, Brightness .9 6 Color .2 8, Solarize .5 2 Invert 0 0,
        Equalize .2 0 AutoContrast .6 0, Equalize .2 0 Equalize .6 0, Color .9 9 Equalize .6 0,
        AutoContrast .8 0 Solarize .2 8, Brightness .1 3 Color .7 0, Solarize .4 5 AutoContrast .9 0,
        TranslateY .9 9 TranslateY .7 9, AutoContrast .9 0 Solarize .8 3, Equalize .8 0 Invert .1 0,
        TranslateY .7 9 AutoContrast .9 0""",
    "imagenet": """
        Posterize .4 8 Rotate .6 9, Solarize .6 5 AutoContrast .6 0, Equalize .8 0 Equalize .6 0,
        Posterize .6 7 Posterize .6 6, Equalize .4 0 Solarize .2 4, Equalize .4 0 Rotate .8 8,
        Solarize .6 3 Equalize .6 0, Posterize .8 5 Equalize 1 0, Rotate .2 3 Solarize .6 8,
        Equalize .6 0 Posterize .4 6, Rotate .8 8 Color .4 0, Rotate .4 9 Equalize .6 0,
        Equalize 0 0 Equalize .8 0, Invert .6 0 Equalize 1 0, Color .6 4 Contrast 1 8,
        Rotate .8 8 Color 1 2, Color .8 8 Solarize .8 7, Sharpness .4 7 Invert .6 0,
        ShearX .6 5 Equalize 1 0, Color .4 0 Equalize .6 0, Equalize .4 0 Solarize .2 4,
        Solarize .6 5 AutoContrast .6 0, Invert .6 0 Equalize 1 0, Color .6 4 Contrast 1 8,
        Equalize .8 0 Equalize .6 0""",
}

_Operation = tuple[str, float, int]


def policy(name: str) -> list[tuple[_Operation, _Operation]]:
    """The sub-policies of an AutoAugment policy: two (operation, probability, magnitude) each."""
    pairs = [text.split() for text in _POLICIES[name].split(",")]
    return [((a, float(p), int(m)), (b, float(q), int(n))) for a, p, m, b, q, n in pairs]


@dataclass(frozen=True)
class _Policy(Step):
    """A step that draws operations."""

    interpolation: str = option("nearest", "Of geometric operations.", choices=INTERPOLATIONS)

    def _operate(self, images: Tensor, kinds: list[tuple[str, float]]) -> Tensor:
        return operate(images, kinds, InterpolationMode(self.interpolation))


def drawn(
    space: Space, bins: int, images: Tensor, which: np.ndarray, level: np.ndarray, negative: np.ndarray
) -> list[tuple[str, float]]:
    """What was drawn, as `operate` takes it.

    Args:
        space: the operations.
        bins: how many magnitudes each has.
        images: [n, channel, height, width], for the magnitudes that depend on the size.
        which, level: int64 [n], positions in the space and among the magnitudes.
        negative: bool [n], negate the magnitude of a signed operation.
    """
    names = list(space)
    tables = [None if make is None else make(bins, *images.shape[2:]).tolist() for make in space.values()]
    kinds = []
    for i, j, minus in zip(which.tolist(), level.tolist(), negative.tolist(), strict=True):
        table = tables[i]
        magnitude = 0.0 if table is None else table[j]
        kinds.append((names[i], -magnitude if minus and names[i] in SIGNED else magnitude))
    return kinds


@dataclass(frozen=True)
class AutoAugment(_Policy):
    """One of 25 learned pairs of operations (as torchvision's AutoAugment)."""

    policy: str = option("imagenet", "What they were learned on.", choices=tuple(_POLICIES))

    @property
    def num_draws(self) -> int:
        return 5

    def apply(self, images: Tensor, words: Words) -> Tensor:
        pairs = policy(self.policy)
        names = list(_AUTO)
        chosen = below(words[:, 0], len(pairs))
        for slot in range(2):
            which = np.array([names.index(pair[slot][0]) for pair in pairs])[chosen]
            level = np.array([pair[slot][2] for pair in pairs])[chosen]
            probability = np.array([pair[slot][1] for pair in pairs])[chosen]
            rows = np.flatnonzero(uniform(words[:, 1 + 2 * slot]) < probability)
            negative = chance(words[rows, 2 + 2 * slot], 0.5)
            index = torch.from_numpy(rows).to(images.device)
            kinds = drawn(_AUTO, 10, images, which[rows], level[rows], negative)
            images = images.index_copy(0, index, self._operate(images[index], kinds))
        return images


@dataclass(frozen=True)
class RandAugment(_Policy):
    """A few operations, drawn uniformly, at one magnitude (as torchvision's RandAugment)."""

    num_ops: int = option(2, "How many.", least=0, most=MAX_DRAWS // 2)
    magnitude: int = option(9, "Below bins.", least=0, most=1023)
    bins: int = option(31, "How many magnitudes each operation has.", least=2, most=1024)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.magnitude >= self.bins:
            raise UsageError(f"{self.name}: magnitude is {self.magnitude}; it must be below bins, {self.bins}")

    @property
    def num_draws(self) -> int:
        return 2 * self.num_ops

    def apply(self, images: Tensor, words: Words) -> Tensor:
        level = np.full(len(images), self.magnitude)
        for slot in range(self.num_ops):
            which = below(words[:, 2 * slot], len(_RAND))
            kinds = drawn(_RAND, self.bins, images, which, level, chance(words[:, 2 * slot + 1], 0.5))
            images = self._operate(images, kinds)
        return images


@dataclass(frozen=True)
class TrivialAugmentWide(_Policy):
    """One operation at one magnitude, both drawn uniformly (as torchvision's TrivialAugmentWide)."""

    bins: int = option(31, "How many magnitudes each operation has.", least=2, most=1024)
    translate: float = option(32.0, "The largest translation, in pixels.", least=0, most=4096)

    @property
    def num_draws(self) -> int:
        return 3

    def scaled(self, ratio: float) -> "TrivialAugmentWide":
        return replace(self, translate=self.translate * ratio)

    def space(self) -> Space:
        """The operations with their magnitudes."""
        strong = {
            name: linear(0.0, 0.99) for name in ("ShearX", "ShearY", "Brightness", "Color", "Contrast", "Sharpness")
        }
        moved = {name: linear(0.0, self.translate) for name in ("TranslateX", "TranslateY")}
        return _RAND | strong | moved | {"Rotate": linear(0.0, 135.0), "Posterize": bits(8, 6)}

    def apply(self, images: Tensor, words: Words) -> Tensor:
        which, level = below(words[:, 0], len(_RAND)), below(words[:, 1], self.bins)
        return self._operate(images, drawn(self.space(), self.bins, images, which, level, chance(words[:, 2], 0.5)))


@dataclass(frozen=True)
class AugMix(_Policy):
    """Chains of one to three operations, blended with each other and the image (as torchvision's, at alpha 1)."""

    interpolation: str = option("bilinear", "Of geometric operations.", choices=INTERPOLATIONS)
    severity: int = option(3, "Magnitudes are drawn from the lowest so many of ten.", least=1, most=10)
    width: int = option(3, "How many chains.", least=1, most=5)

    @property
    def num_draws(self) -> int:
        return 1 + 11 * self.width

    def weights(self, words: Words) -> np.ndarray:
        """Shares of the image and of each chain, in 65536ths that sum to 65536: int64 [n, 1 + width].

        The image's share is Beta(1, 1); the chains share the rest by Dirichlet(1, ..., 1), as normalised exponentials.
        """
        own = uniform(words[:, :1])
        gaps = -np.log1p(-uniform(words[:, 1 : 1 + self.width]))
        shares = np.concatenate([own, (1 - own) * gaps / np.maximum(gaps.sum(1, keepdims=True), 1e-300)], axis=1)
        edges = np.rint(np.cumsum(shares, axis=1) * 65536).astype(np.int64)
        edges[:, -1] = 65536
        return np.diff(edges, axis=1, prepend=0)

    def apply(self, images: Tensor, words: Words) -> Tensor:
        weights = torch.from_numpy(self.weights(words).astype(np.int32)).to(images.device)[:, :, None, None, None]
        mixed = images * weights[:, 0]  # int32: at most 255 * 65536
        for chain in range(self.width):
            own = words[:, 1 + self.width + 10 * chain :]
            depth = 1 + below(own[:, 0], 3)
            result = images
            for link in range(3):
                rows = np.flatnonzero(depth > link)
                which, level, sign = own[rows, 1 + 3 * link : 4 + 3 * link].T
                index = torch.from_numpy(rows).to(images.device)
                kinds = drawn(
                    _AUGMIX, 10, images, below(which, len(_AUGMIX)), below(level, self.severity), chance(sign, 0.5)
                )
                result = result.index_copy(0, index, self._operate(result[index], kinds))
            mixed += result * weights[:, 1 + chain]
        return (mixed >> 16).to(torch.uint8)
