"""Rows that a large teacher knows better than a small network does."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gdkd_cache.errors import UsageError
from gdkd_cache.selection.base import Selection, Views, largest


@dataclass(frozen=True, kw_only=True)
class MiniPLM(Selection):
    """Difference sampling: the largest difference of the label's log-likelihood between two caches.

    score = mean over views of log p_teacher(label) - log p_reference(label) (MiniPLM, Gu et al., ICLR 2025, arXiv
    2410.17215, equation 3, where the likelihood is that of a text)
    """

    needs_reference: ClassVar[bool] = True

    def choose(self, views: Views, reference: Views | None, number: int) -> np.ndarray:
        assert reference is not None
        if unlabelled := views.cache.manifest.identity.data.unlabelled:
            raise UsageError(f"{unlabelled} rows of {views.cache.path} have no label, and miniplm needs one of each")
        ours, theirs = (self._likelihood(one) for one in (views, reference))
        there = {key: row for row, key in enumerate(reference.cache.keys)}
        return largest(ours - theirs[[there[key] for key in views.cache.keys]], number)

    def _likelihood(self, views: Views) -> np.ndarray:
        """Of each row's label, in nats, in the mean over the views."""
        scores = np.zeros(views.cache.num_rows)
        for part, said in views.log_probabilities(self.temperature):
            own = said.numpy()[np.arange(len(said)), views.cache.labels[part]]
            scores[part] += own / len(views.numbers)
        return scores
