"""Whether a probability is what it says: confidence against how often it is right."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

BINS = 15


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Predictions in bins of confidence (Guo et al., "On Calibration of Modern Neural Networks", 2017).

    Attributes:
        edges: of the bins, which are open on the left, float64 [bin + 1].
        counts: predictions in each, int64 [bin].
        confidence, accuracy: their means, float64 [bin]; NaN in an empty bin.
        error: the expected calibration error in [0, 1]: the mean over predictions of |accuracy - confidence| there.
    """

    edges: Float[np.ndarray, " edge"]
    counts: Int[np.ndarray, " bin"]
    confidence: Float[np.ndarray, " bin"]
    accuracy: Float[np.ndarray, " bin"]
    error: float


def reliability(
    confidence: Float[np.ndarray, "*any"], is_right: Bool[np.ndarray, "*any"], bins: int = BINS
) -> Reliability:
    """Put predictions in bins of equal width.

    Args:
        confidence: of each prediction, in [0, 1].
        is_right: whether it is right.
        bins: how many.
    """
    values, hits = confidence.reshape(-1).astype(np.float64), is_right.reshape(-1)
    place = np.clip(np.ceil(values * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    sums, right = np.bincount(place, values, bins), np.bincount(place, hits, bins)
    with np.errstate(invalid="ignore"):
        means, accuracy = sums / counts, right / counts
    return Reliability(
        edges=np.linspace(0, 1, bins + 1),
        counts=counts,
        confidence=means,
        accuracy=accuracy,
        error=float(np.abs(right - sums).sum() / max(len(values), 1)),
    )


def shares(
    values: Float[np.ndarray, "*any"], edges: Float[np.ndarray, " edge"], total: int
) -> Float[np.ndarray, " bin"]:
    """How many of the values lie between each two edges, as shares of a total; those beyond count in the outer bins."""
    inside = np.clip(values.reshape(-1), edges[0], edges[-1])
    return np.histogram(inside, edges)[0] / max(total, 1)
