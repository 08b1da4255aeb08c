"""The score: the figure by which epochs and trainings are compared, in [0, 1]."""

from collections.abc import Mapping

SCORES: Mapping[str, str] = {"accuracy": "accuracy", "mean_iou": "mean IoU"}
"""By its name in metrics and cards, in words: top-1 of images with a class, mean IoU of those with a mask."""


def score_of(line: Mapping[str, object]) -> str:
    """The name of the score among an epoch's metrics.

    Raises:
        ValueError: it has none.
    """
    name = next((name for name in SCORES if name in line), None)
    if name is None:
        raise ValueError(f"it has no score: none of {', '.join(SCORES)}")
    return name
