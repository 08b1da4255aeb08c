"""What is kept of a training's gradients: how strong each level pulls at the logits outside the teacher's top classes.

A part of a batch in each so many steps, its logits as they are anyway: it costs no more than a few small operations.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gdkd_cache.cache.batch import TeacherBatch
from gdkd_cache.losses.base import Loss
from gdkd_cache.losses.levels import NAMES, level_gradients
from gdkd_cache.losses.partition import standardize, top_classes

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of the magnitudes, in this order, under each name in the metrics."""
EVERY = 100
"""Steps of an epoch from one look to the next; the first step is looked at."""
LENGTH = 2 + len(NAMES) * len(QUANTILES)
_MOST_VALUES = 2**15
TOP = 5
"""Size of the top group of a loss that has none."""


def num_top(loss: Loss, num_classes: int) -> int:
    """How many classes are the top group: as many as in the loss's, and of a loss without one 5, as in the paper's."""
    return min(loss.num_top or TOP, num_classes - 1)


@torch.no_grad()
def look(student: Tensor, said: TeacherBatch, loss: Loss) -> Tensor:
    """The magnitudes of some rows' gradients as one vector that can be added up; nothing is read from the device.

    Args:
        student: logits [row, class].
        said: what the teacher said of the same rows.
        loss: whose temperature and top group are taken; standardized logits where it has these.

    Returns:
        float32 [LENGTH]: 1, the median factor of the rows, the quantiles of each of `NAMES`; zeros where one of these
        is not finite.
    """
    num_classes = student.shape[-1]
    k = num_top(loss, num_classes)
    rows = min(len(student), max(1, _MOST_VALUES // num_classes))
    s, t, top = student[:rows].detach().float(), said.logits[:rows].float(), said.top[:rows, :k]
    if top.shape[-1] < k:
        top = top_classes(t, k)
    if loss.standardize:
        s, t = standardize(s), standardize(t)
    *levels, factor = level_gradients(s, t, top, loss.temperature)
    magnitudes = torch.stack(levels).abs_()
    # What is not looked at goes to the end.
    magnitudes.scatter_(-1, top.expand(len(levels), -1, -1), torch.inf)
    ranked = magnitudes.flatten(1).sort(-1).values[:, : rows * (num_classes - k)]
    at = [round(quantile * (ranked.shape[1] - 1)) for quantile in QUANTILES]
    found = torch.cat([factor.new_ones(1), factor.median().reshape(1), ranked[:, at].flatten()])
    return found.where(found.isfinite().all(), 0.0)


def told(sums: Sequence[float], loss: Loss, num_classes: int) -> dict[str, Any]:
    """What the metrics say of an epoch: under `gradients`, means over its looks; nothing without one.

    Args:
        sums: of what `look` gave.
        loss: as for `look`.
        num_classes: C.
    """
    if not sums or not sums[0]:
        return {}
    factor, *values = (float(f"{value / sums[0]:.4g}") for value in sums[1:])
    step = len(QUANTILES)
    levels = {name: values[number * step : (number + 1) * step] for number, name in enumerate(NAMES)}
    return {
        "gradients": {
            "k": num_top(loss, num_classes),
            "temperature": loss.temperature,
            "factor": factor,
            **levels,
        }
    }
