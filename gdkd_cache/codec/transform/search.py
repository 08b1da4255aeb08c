"""The coarsest step at which a transform codec meets a gradient error."""

import math
from typing import TYPE_CHECKING

from gdkd_cache.codec.base import Codec
from gdkd_cache.codec.dense import DenseCodec, DenseOptions
from gdkd_cache.codec.transform.codec import TransformOptions
from gdkd_cache.codec.transform.fit import fit_transform, gather_statistics

if TYPE_CHECKING:
    from gdkd_cache.codec.calibration import Calibration

_MARGIN = 0.99  # of the target on held-out rows: other views came out up to 0.9% worse
_CLOSE = 0.97
_STEPS = 8


def fit_to(calibration: "Calibration", options: TransformOptions, fidelity: float) -> Codec:
    """`transform` at the step of the options or, without one, at the coarsest step that meets a gradient error.

    The error rises about in proportion to the step, so the search is a secant in the logarithms. Where no step
    of at least a thousandth of the logits' deviation meets the target, this is `dense`.
    """
    num_top, (logits, labels) = calibration.num_top(options), calibration.fitted
    statistics = calibration.shared(
        ("transform", num_top),
        lambda: gather_statistics(logits, labels, num_top=num_top, losses=calibration.request.losses),
    )
    if options.step is not None:
        return fit_transform(statistics, options.step)
    target = fidelity * _MARGIN
    deviation = max(float(logits.std(-1).mean()), 1e-3)
    step = 5 * target * deviation
    below, above = 0.0, math.inf  # the largest step that met the target, the smallest that did not
    for _ in range(_STEPS):
        error = calibration.error(fit_transform(statistics, step, group=False))
        if error <= target:
            below = step
            if error >= _CLOSE * target:
                break
        else:
            above = step
        ratio = target * (1 + _CLOSE) / 2 / error if error else 4.0
        step *= min(max(ratio, 0.1), 4.0) ** 1.2
        if not below < step < above:
            step = above / 2 if not below else below * 2 if above == math.inf else math.sqrt(below * above)
        if step < deviation / 1000:
            break
    return fit_transform(statistics, below) if below else DenseCodec.fit(calibration, DenseOptions(k=num_top), fidelity)
