"""What a teacher said of some views, in a few numbers a view and a row."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

_AT_ONCE = 2**22
"""Logits that are taken together: what bounds the memory."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """Of each view of each row, and of each row over its views; in nats, at temperature 1.

    Attributes:
        first: the likeliest class, of equal ones the lower, int64 [view, row].
        confidence: its probability, float32 [view, row].
        own: the label's probability, float32 [view, row].
        entropy: of the probabilities, float32 [view, row].
        mean_entropy: of the mean of the probabilities over the views, float32 [row].
        divergence: Jensen-Shannon's between the views, that less the mean of `entropy`: float32 [row], 0 to log views.
        agreement: the share of pairs of views with the same first class, float32 [row]; 1 of a single view.
    """

    first: Int[np.ndarray, "view row"]
    confidence: Float[np.ndarray, "view row"]
    own: Float[np.ndarray, "view row"]
    entropy: Float[np.ndarray, "view row"]
    mean_entropy: Float[np.ndarray, " row"]
    divergence: Float[np.ndarray, " row"]
    agreement: Float[np.ndarray, " row"]


def summarise(logits: Float[np.ndarray, "view row class"], labels: Int[np.ndarray, " row"]) -> Said:
    """The numbers of logits.

    Args:
        logits: float32 [view, row, class], each row up to a constant.
        labels: int64 [row] in [0, class).
    """
    views, rows, _ = logits.shape
    first = np.empty((views, rows), np.int64)
    confidence, own, entropy = (np.empty((views, rows), np.float32) for _ in range(3))
    mean_entropy = np.empty(rows, np.float32)
    for part in row_blocks(logits):
        total = np.zeros(logits[0, part].shape, np.float32)
        for view in range(views):
            probabilities = softmax(logits[view, part])
            first[view, part] = probabilities.argmax(-1)
            confidence[view, part] = probabilities.max(-1)
            own[view, part] = np.take_along_axis(probabilities, labels[part, None], -1)[:, 0]
            entropy[view, part] = entropies(probabilities)
            total += probabilities
        mean_entropy[part] = entropies(total / views)
    return Said(
        first=first,
        confidence=confidence,
        own=own,
        entropy=entropy,
        mean_entropy=mean_entropy,
        divergence=np.maximum(mean_entropy - entropy.mean(0), 0),
        agreement=_agreement(first),
    )


def most_said(first: Int[np.ndarray, "view row"]) -> Int[np.ndarray, " row"]:
    """In how many views of each row its most frequent first class is said: int64, 1 to views."""
    return _runs(first).max(0)


def row_blocks(logits: np.ndarray) -> Iterator[slice]:
    """Stretches of rows of logits [view, row, class], of which one view's are a few million values."""
    step = max(1, _AT_ONCE // logits.shape[-1])
    return (slice(start, start + step) for start in range(0, logits.shape[1], step))


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities float32 [..., class] at a temperature."""
    powers = np.exp((logits - logits.max(-1, keepdims=True)) / np.float32(temperature))
    powers /= powers.sum(-1, keepdims=True)
    return powers


def entropies(probabilities: np.ndarray) -> np.ndarray:
    """-sum p log p over the last axis, in nats; 0 log 0 is 0."""
    logarithms = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
    return -np.einsum("...c,...c->...", probabilities, logarithms)


def _agreement(first: np.ndarray) -> np.ndarray:
    """The share of pairs of views that say the same class, of int64 [view, row]."""
    views = len(first)
    if views == 1:
        return np.ones(first.shape[1], np.float32)
    # Of equal ones the number of pairs is the sum of how many of them stand before each.
    pairs = (_runs(first) - 1).sum(0)
    return (pairs / (views * (views - 1) / 2)).astype(np.float32)


def _runs(first: np.ndarray) -> np.ndarray:
    """How many equal ones stand there and before, of the classes of each row in their order: int64 [view, row]."""
    ranked = np.sort(first, 0)
    runs = np.ones_like(ranked)
    for view, (before, here) in enumerate(pairwise(ranked), 1):
        runs[view] = np.where(here == before, runs[view - 1] + 1, 1)
    return runs
