"""The gradient error to expect of a loss that a cache was not measured for, from those that it was.

What a codec loses is unknown to a reader; how much it mattered to the declared losses is not. So noise is put on the
decoded logits, scaled until a declared loss's gradient errs as was measured, and shown to the other loss. The noise of
a logit falls with its sensitivity to the declared loss, as codecs keep what matters more finely.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gdkd_cache.codec.fidelity import gradient
from gdkd_cache.losses.base import Loss

_STEPS = 8
_FLOOR = 0.03
_POWER = -0.25
_TOP_NOISE = 0.3
"""Noise of the exact classes' values, as a part of the others'."""


def expected_error(
    loss: Loss,
    measured: Sequence[tuple[Loss, float]],
    logits: Tensor,
    labels: Tensor,
    top: Tensor,
    *,
    exact_values: bool,
) -> float:
    """The gradient error to expect of a loss: the largest that one of the measured losses suggests.

    It is within a factor of two of the error against the full logits, mostly within a third.

    Args:
        loss: one that was not measured.
        measured: losses and their gradient errors, at least one.
        logits: decoded, float32 [row, class]; a thousand rows are enough.
        labels: int64 [row].
        top: the exact top classes in rank order, int64 [row, k].
        exact_values: whether the top classes' logits are kept as they were.

    Returns:
        0 or above.
    """
    wanted = _ErrorOf(loss, logits, labels, top)
    noises = (expected_noise(*one, logits, labels, top, exact_values=exact_values) for one in measured)
    return max(map(wanted, noises))


def expected_noise(
    declared: Loss, error: float, logits: Tensor, labels: Tensor, top: Tensor, *, exact_values: bool
) -> Tensor:
    """What a codec may have changed of logits: noise, the same each time, with which a loss errs as it was measured to.

    Args:
        declared: the loss that was measured.
        error: its gradient error.
        logits, labels, top, exact_values: as for `expected_error`.

    Returns:
        float32 [row, class].
    """
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    noise.scatter_(-1, top, (0.0 if exact_values else _TOP_NOISE) * noise.gather(-1, top))
    weights = declared.sensitivity(logits, labels, top)
    shaped = noise if weights is None else noise * (weights / weights.mean() + _FLOOR) ** _POWER
    return _scaled(shaped, _ErrorOf(declared, logits, labels, top), error)


class _ErrorOf:
    """The gradient error of a loss when its teacher's logits are changed."""

    def __init__(self, loss: Loss, logits: Tensor, labels: Tensor, top: Tensor) -> None:
        self._loss, self._logits, self._rest = loss, logits, (labels, top)
        self._full = gradient(loss, logits, *self._rest)

    def __call__(self, change: Tensor) -> float:
        size = float(self._full.norm())
        apart = gradient(self._loss, self._logits + change, *self._rest) - self._full
        return float(apart.norm()) / size if size else 0.0


def _scaled(noise: Tensor, error_of: Callable[[Tensor], float], wanted: float) -> Tensor:
    """Noise of the size at which the error is as wanted: it rises about in proportion."""
    for _ in range(_STEPS):
        error = error_of(noise)
        factor = min(max(wanted / error, 0.05), 20.0) if error else 0.0
        noise = factor * noise
        if math.isclose(factor, 1, rel_tol=0.02) or not factor:
            break
    return noise
