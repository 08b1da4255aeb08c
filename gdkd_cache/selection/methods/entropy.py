"""Rows that the teacher is least sure of."""

from dataclasses import dataclass

import numpy as np

from gdkd_cache.selection.base import Selection, Views, entropies, largest


@dataclass(frozen=True, kw_only=True)
class Entropy(Selection):
    """The largest entropy of what the teacher said, in the mean over the views (uncertainty sampling, Lewis 1994).

    score = mean over views v of -sum_c p_v,c log p_v,c
    """

    def choose(self, views: Views, reference: Views | None, number: int) -> np.ndarray:
        scores = np.zeros(views.cache.num_rows)
        for rows, said in views.log_probabilities(self.temperature):
            scores[rows] += entropies(said).numpy()
        return largest(scores, number)
