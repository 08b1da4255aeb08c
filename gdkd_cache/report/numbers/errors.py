"""Gradient errors: of groups of rows, and of what other formats would keep of the same logits."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_LEAST = 2.0**-24
"""The smallest probability above 0 that float16 holds."""


def error_by_group(
    full: Float[Tensor, "row class"], cached: Float[Tensor, "row class"], groups: np.ndarray, num_groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """||G_cache - G_full||_F / ||G_full||_F over the rows of each group.

    Args:
        full, cached: gradients, a row each.
        groups: int64 [row], each in 0..num_groups-1.
        num_groups: how many.

    Returns:
        Errors float64 [group], NaN where a group has no row or no gradient; and rows int64 [group].
    """
    apart = (cached.double() - full.double()).square().sum(-1).numpy()
    whole = full.double().square().sum(-1).numpy()
    above, below = (np.bincount(groups, weights=part, minlength=num_groups) for part in (apart, whole))
    return np.sqrt(above / np.where(below > 0, below, np.nan)), np.bincount(groups, minlength=num_groups)


def kept_probabilities(logits: Float[Tensor, "row class"], kept: int) -> Float[Tensor, "row class"]:
    """Logits of a record that keeps the likeliest classes' probabilities in float16, and spreads the rest evenly.

    Such are the records of TinyViT, FKD and Dataset Reinforcement.

    Args:
        logits: what the teacher said.
        kept: how many classes, 1 <= kept < C.
    """
    probabilities, classes = logits.softmax(-1).topk(kept)
    probabilities = probabilities.half().float()
    rest = (1 - probabilities.sum(-1, keepdim=True)).clamp(min=0) / (logits.shape[-1] - kept)
    spread = rest.expand(-1, logits.shape[-1]).scatter(-1, classes, probabilities)
    return spread.clamp(min=_LEAST).log()


def bin_of(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The bin of each value in [edges[0], edges[-1]]: int64, 0 for the first; the last bin holds its upper edge."""
    return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2).astype(np.int64)


def confidence(logits: Float[Tensor, "row class"]) -> np.ndarray:
    """The probability of each row's likeliest class: float32 [row]."""
    return torch.softmax(logits, -1).max(-1).values.numpy()
