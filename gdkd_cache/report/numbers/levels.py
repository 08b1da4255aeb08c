"""How strong each level of the loss pulls at the logits outside the top classes, at a student that knows nothing."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from gdkd_cache.losses.levels import NAMES, level_gradients
from gdkd_cache.losses.partition import top_classes

_MOST_VALUES = 2**22


@dataclass(frozen=True, kw_only=True)
class Pulls:
    """Magnitudes of gradients.

    Attributes:
        magnitudes: of each of `NAMES` (top level, rest, KD), float32 [value], row by row.
        factor: the median over the rows of 1 / (1 - p_top).
    """

    magnitudes: dict[str, Float[np.ndarray, " value"]]
    factor: float


def pulls_at_uniform(logits: Float[np.ndarray, "row class"], k: int, temperature: float) -> Pulls:
    """The magnitudes at a student whose logits are all equal; the same definition as the cache's gradient error.

    Args:
        logits: of the teacher; of many rows some are taken, evenly.
        k: size of the top group, 1 <= k < class.
        temperature: T > 0.
    """
    num_classes = logits.shape[-1]
    number = min(len(logits), max(1, _MOST_VALUES // num_classes))
    teacher = torch.from_numpy(logits[np.linspace(0, len(logits) - 1, number).astype(np.int64)])
    top = top_classes(teacher, k)
    *levels, factor = level_gradients(torch.zeros_like(teacher), teacher, top, temperature)
    outside = torch.ones_like(teacher, dtype=torch.bool).scatter(-1, top, False)
    found = {name: level[outside].abs().numpy() for name, level in zip(NAMES, levels, strict=True)}
    return Pulls(magnitudes=found, factor=float(factor.median()))
