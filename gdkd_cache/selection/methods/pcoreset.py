"""Rows that cover the space of the teacher's probabilities."""

from dataclasses import dataclass

import numpy as np
import torch

from gdkd_cache.selection.base import Selection, Views, largest, require_memory


@dataclass(frozen=True, kw_only=True)
class PCoreSet(Selection):
    """Greedy k-centre in the space of probabilities: each next row is the farthest from all those that are taken.

    next = argmax over rows i of min over taken j of ||p_i - p_j||_2 (PCoreSet, Kang et al. 2025, arXiv 2506.00910;
    github.com/erjui/PCoreSet, strategies.py). There p is what a student in training says, and the rows with labels are
    the first that are taken; here it is the mean of what the teacher says of the views, and the first row is the one
    nearest to the mean of all.
    """

    def choose(self, views: Views, reference: Views | None, number: int) -> np.ndarray:
        rows, classes = views.cache.num_rows, views.cache.num_classes
        require_memory(rows * classes * 4)
        p = torch.zeros(rows, classes)
        for part, said in views.log_probabilities(self.temperature):
            p[part] += said.exp().float() / len(views.numbers)
        first = largest(-(p - p.mean(0)).square().sum(-1).numpy(), 1)
        chosen, away = [int(first[0])], torch.full((rows,), torch.inf)
        while len(chosen) < number:
            away = torch.minimum(away, (p - p[chosen[-1]]).square_().sum(-1))
            away[chosen[-1]] = -1  # never again, even where all the others are copies of it
            chosen.append(int(away.argmax()))
        return np.array(chosen, np.int64)
