"""Rows whose views are said to be different things."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from gdkd_cache.selection.base import Selection, Views, entropies, largest, require_memory


@dataclass(frozen=True, kw_only=True)
class Disagreement(Selection):
    """The largest Jensen-Shannon divergence between what the teacher said of a row's views.

    score = H(mean over views of p_v) - mean over views of H(p_v)
    """

    least_views: ClassVar[int] = 2

    def choose(self, views: Views, reference: Views | None, number: int) -> np.ndarray:
        rows, classes = views.cache.num_rows, views.cache.num_classes
        require_memory(rows * classes * 4)
        mean, own = torch.zeros(rows, classes), np.zeros(rows)
        for part, said in views.log_probabilities(self.temperature):
            mean[part] += said.exp() / len(views.numbers)
            own[part] += entropies(said).numpy() / len(views.numbers)
        joint = np.concatenate([entropies(block.double().log()).numpy() for block in mean.split(4096)])
        return largest(joint - own, number)
