"""Teacher hacking: a student that comes to say what its teacher says, and less and less of what is right.

Tiapkin et al., "On Teacher Hacking in Language Model Distillation" (2025, arXiv 2502.02671): with a fixed set of what a
teacher said, the distance to the teacher still falls when the distance to the truth already rises.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

_EPOCHS = 3
"""Epochs whose mean is taken: what one of them says by chance counts less."""
_DEVIATIONS = 2.0


def hacking_since(lines: Sequence[Mapping[str, Any]], num_images: int, score: str = "accuracy") -> int | None:
    """The epoch, from 1, after which accuracy on held-out images fell while agreement with the teacher rose.

    Of the means over three epochs: the last one of agreement is the highest of all, and the last one of accuracy is
    below the highest by more than two standard errors of the difference of two shares of `num_images`.

    Args:
        lines: of the metrics, one an epoch, with a score and, where there is a teacher, `agreement`.
        num_images: that the score was measured on.
        score: its name, of a share in [0, 1].

    Returns:
        The last epoch of the three with the highest accuracy; None where nothing is wrong, or it cannot be said.
    """
    agreement, accuracy = (_means(lines, name) for name in ("agreement", score))
    if len(agreement) < 2 or len(agreement) != len(accuracy) or agreement[-1] <= max(agreement[:-1]):
        return None
    best = max(range(len(accuracy)), key=accuracy.__getitem__)
    error = math.sqrt(2 * accuracy[best] * (1 - accuracy[best]) / num_images)
    return best + _EPOCHS if accuracy[best] - accuracy[-1] > _DEVIATIONS * error else None


def _means(lines: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """Of each three epochs in turn; none where not all say it."""
    values = [line.get(name) for line in lines]
    if not all(isinstance(value, int | float) for value in values):
        return []
    return [sum(values[end - _EPOCHS : end]) / _EPOCHS for end in range(_EPOCHS, len(values) + 1)]  # pyright: ignore
