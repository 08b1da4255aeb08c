"""How right a teacher is: its figures against labels, and what chance allows."""

import math
from typing import NamedTuple

import numpy as np
from torch import Tensor

from gdkd_cache.store.facts import Examined

P_VALUE = 1e-3
"""What chance may do once in a thousand times is not taken for a fact."""
_BINS = 15
_TOP = 5
_ROWS_AT_ONCE = 2048


class Fault(NamedTuple):
    """What is wrong with how a teacher is used.

    Attributes:
        share: of rows that it is right about without the fault, in [0, 1].
        said: the fault, what shows it, and what to do, in words.
    """

    share: float
    said: str


class Tally:
    """Counts what a teacher says of rows with labels, batch by batch; the figures depend on no thread and no order."""

    def __init__(self) -> None:
        self._rows: list[np.ndarray] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Take some rows: float [row, class], and int64 [row]."""
        for first in range(0, len(labels), _ROWS_AT_ONCE):
            part = slice(first, first + _ROWS_AT_ONCE)
            self._rows.append(_row_figures(logits[part].cpu().double().numpy(), labels[part].cpu().numpy()))

    def examined(self) -> Examined:
        """The figures of all rows."""
        top1, top_few, confidence, entropy = np.concatenate(self._rows, 1)
        bins = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
        gaps = [math.fsum((confidence - top1)[bins == number]) for number in range(_BINS)]
        return Examined(
            rows=len(top1),
            top1=_mean(top1),
            top5=_mean(top_few),
            calibration_error=round(math.fsum(map(abs, gaps)) / len(top1), 6),
            entropy=_mean(entropy),
        )


def _row_figures(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of each row whether the label is first, and among the first five, the first's probability, and the entropy."""
    shifted = logits - logits.max(-1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    shares = np.exp(logs)
    own = np.take_along_axis(logits, labels[:, None], -1)
    before = (logits > own).sum(-1)
    before += ((logits == own) & (np.arange(logits.shape[-1]) < labels[:, None])).sum(-1)  # the lower class id first
    return np.stack([before == 0, before < _TOP, shares.max(-1), -(shares * logs).sum(-1)])


def _mean(values: np.ndarray) -> float:
    return round(math.fsum(values) / len(values), 6)


def at_least(hits: int, rows: int, share: float) -> float:
    """The probability of so many hits, or more, of independent rows that are each hit with a probability."""
    if not 0 < share < 1:
        return float(hits <= rows * share)
    count = np.arange(hits, rows + 1)
    ways = math.lgamma(rows + 1) - _log_factorials(count) - _log_factorials(rows - count)
    return min(math.fsum(np.exp(ways + count * math.log(share) + (rows - count) * math.log1p(-share))), 1.0)


def at_most(hits: int, rows: int, share: float) -> float:
    """The probability of so many hits, or fewer."""
    return at_least(rows - hits, rows, 1 - share)


def _log_factorials(numbers: np.ndarray) -> np.ndarray:
    return np.array([math.lgamma(number + 1) for number in numbers.tolist()])


def chance(predicted: np.ndarray, labels: np.ndarray) -> float:
    """How often predictions that know nothing of the rows, made as often, would be the labels: in [0, 1]."""
    longest = int(max(predicted.max(), labels.max())) + 1
    shares = [np.bincount(values, minlength=longest) / len(values) for values in (predicted, labels)]
    return float(shares[0] @ shares[1])


def much_better(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether the same rows, bool [row], are right so much more often that it is neither chance nor a trifle."""
    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    gain = (won - lost) / max(len(before), 1)
    return bool(gain >= max(0.04, 0.1 * before.mean())) and at_least(won, won + lost, 0.5) < P_VALUE
