"""Two images in one view: MixUp and CutMix, decided by (seed, view, key) alone."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from gdkd_cache.data.recipes.erasing import inside
from gdkd_cache.data.recipes.step import chance
from gdkd_cache.errors import UsageError
from gdkd_cache.fields import check_fields, option
from gdkd_cache.seeding import Words, below, draw, streams

_LEVELS = 256
_DRAWS = 4096


@dataclass(frozen=True)
class Mix:
    """The last thing that happens to a view: it is blended with its partner, or gets a box of it.

    MixUp (Zhang et al., 2018) when only `mixup_alpha` is above 0, CutMix (Yun et al., 2019) when only `cutmix_alpha`
    is, and when both are, one of them with equal chances.

    Raises:
        UsageError: a number out of range, or no method.
    """

    num_draws: ClassVar[int] = 5
    mixup_alpha: float = option(
        0.0, "MixUp's shares are drawn from Beta(alpha, alpha); 0 leaves it out.", least=0, most=100
    )
    cutmix_alpha: float = option(0.0, "CutMix's, likewise.", least=0, most=100)
    probability: float = option(1.0, "Of mixing at all.", least=0, most=1)
    mixup_quantiles: tuple[int, ...] = option(
        (),
        "MixUp's distribution as it is drawn from, made from alpha when empty: entry l is how many of 4096 equal draws "
        "give a share of at most l / 256.",
    )
    cutmix_quantiles: tuple[int, ...] = option((), "CutMix's, likewise.")

    def __post_init__(self) -> None:
        check_fields(self, "mix")
        for method in ("mixup", "cutmix"):
            alpha = getattr(self, f"{method}_alpha")
            if 0 < alpha < 0.01:
                raise UsageError(f"mix: {method}_alpha is {alpha!r}; it must be 0 or in 0.01..100")
            quantiles: tuple[int, ...] = getattr(self, f"{method}_quantiles")
            if alpha and not quantiles:
                quantiles = _beta_quantiles(alpha)
            if alpha and (
                len(quantiles) != _LEVELS + 1
                or list(quantiles) != sorted(quantiles)
                or not 0 <= quantiles[0] <= quantiles[-1] == _DRAWS
            ):
                raise UsageError(f"mix: {method}_quantiles must be {_LEVELS + 1} rising integers up to {_DRAWS}")
            object.__setattr__(self, f"{method}_quantiles", quantiles)
        if not (self.mixup_alpha or self.cutmix_alpha):
            raise UsageError("mix: mixup_alpha and cutmix_alpha are 0; at least one must be above 0")

    def apply(self, images: Tensor, partners: Tensor, words: Words) -> tuple[Tensor, np.ndarray]:
        """Mix every image with its partner.

        Args:
            images, partners: uint8 [n, 3, height, width].
            words: uint64 [n, 5].

        Returns:
            uint8 [n, 3, height, width], and the images' shares of their results, float32 [n] in [0, 1].
        """
        height, width = images.shape[2:]
        cut = chance(words[:, 1], 0.5) if self.mixup_alpha and self.cutmix_alpha else np.array(not self.mixup_alpha)
        mixed = chance(words[:, 0], self.probability)
        blended, boxed = mixed & ~cut, mixed & cut
        level = np.full(len(images), _LEVELS)
        level[blended] = np.searchsorted(self.mixup_quantiles, below(words[blended, 2], _DRAWS), side="right")
        level[boxed] = np.searchsorted(self.cutmix_quantiles, below(words[boxed, 2], _DRAWS), side="right")
        # The box of torchvision's CutMix: sides of sqrt(1 - share) around a uniform pixel, cut off at the borders.
        half = 0.5 * np.sqrt(1 - level / _LEVELS)
        half_h, half_w = (half * height).astype(np.int64), (half * width).astype(np.int64)
        y, x = below(words[:, 3], height), below(words[:, 4], width)
        top, bottom = np.maximum(y - half_h, 0), np.where(boxed, np.minimum(y + half_h, height), 0)
        left, right = np.maximum(x - half_w, 0), np.where(boxed, np.minimum(x + half_w, width), 0)
        result = torch.where(inside(images, top, left, bottom, right), partners, images)
        rows = torch.from_numpy(np.flatnonzero(blended)).to(images.device)
        weight = torch.from_numpy(level[blended].astype(np.int32)).to(images.device)[:, None, None, None]
        sums = images[rows] * weight + partners[rows] * (_LEVELS - weight)  # int32: at most 255 * 256
        result[rows] = ((sums + _LEVELS // 2) >> 8).to(torch.uint8)
        area = np.maximum(bottom - top, 0) * np.maximum(right - left, 0)
        share = np.where(boxed, 1 - area / (height * width), level / _LEVELS)
        return result, share.astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


def partners(seed: int, view: int, key_hashes: Words) -> np.ndarray:
    """Everyone's partner in one view: the keys in a ring of random order, each with the next.

    Depends on the set of keys, never on their order. Every row is a partner exactly once, and never its own.

    Returns:
        int64 [row].
    """
    ring = np.argsort(draw(streams(seed, "partner", view, key_hashes), 0), kind="stable")
    result = np.empty(len(ring), np.int64)
    result[ring] = np.roll(ring, -1)
    return result


def _beta_quantiles(alpha: float) -> tuple[int, ...]:
    """How many of 4096 draws from Beta(alpha, alpha) are at most (l + 1/2) / 256, for l in 0..256.

    The density x^(a-1) (1-x)^(a-1) on [0, 1/2] is summed in t = x^a where a < 1, for it is smooth there; the other
    half is symmetric.
    """
    power = min(alpha, 1.0)
    t = np.linspace(0, 0.5**power, 2**16 + 1)
    density = t ** (alpha / power - 1) * (1 - t ** (1 / power)) ** (alpha - 1)
    area = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    area *= 0.5 / area[-1]
    edges = (np.arange(_LEVELS) + 0.5) / _LEVELS
    lower = np.interp(np.minimum(edges, 1 - edges) ** power, t, area)
    cumulative = np.where(edges <= 0.5, lower, 1 - lower)
    return (*np.rint(cumulative * _DRAWS).astype(int).tolist(), _DRAWS)
