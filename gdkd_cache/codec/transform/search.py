"""The coarsest step at which a transform codec meets a gradient error, and how many references it takes."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from gdkd_cache.codec.base import Codec
from gdkd_cache.codec.dense import DenseCodec, DenseOptions
from gdkd_cache.codec.transform.codec import TransformCodec, TransformOptions
from gdkd_cache.codec.transform.fit import fit_transform, gather_statistics
from gdkd_cache.codec.transform.predict import with_references
from gdkd_cache.errors import UsageError

if TYPE_CHECKING:
    from gdkd_cache.codec.calibration import Calibration

_MARGIN = 0.99  # of the target on held-out rows: other views came out up to 0.9% worse
_CLOSE = 0.97
_STEPS = 8
_STEPS_FROM_NEAR = 3


def fit_to(calibration: "Calibration", options: TransformOptions, fidelity: float) -> Codec:
    """`transform` at the step of the options or, without one, at the coarsest step that meets a gradient error.

    With as many references as the options say or, where they say nothing, as take the fewest bytes. Where no step
    of at least a thousandth of the logits' deviation meets the target, this is `dense`.

    Raises:
        UsageError: more references than the calibration has views for.
    """
    num_top, (logits, labels) = calibration.num_top(options), calibration.fitted
    statistics = calibration.shared(
        ("transform", num_top),
        lambda: gather_statistics(logits, labels, num_top=num_top, losses=calibration.request.losses),
    )
    views, candidates = calibration.views, TransformCodec.reference_candidates(options)
    if options.references and (views is None or len(views) <= options.references):
        raise UsageError(
            f"codec transform with {options.references} references needs as many views and one more to be fitted to"
        )

    def codec(step: float, references: int = 0, *, group: bool = True) -> TransformCodec:
        plain = fit_transform(statistics, step, group=group and not references)
        if not references:
            return plain
        assert views is not None
        return with_references(plain, views, references, group=group)

    target, deviation = fidelity * _MARGIN, max(float(logits.std(-1).mean()), 1e-3)

    def coarsest(references: int, start: float, tries: int) -> float:
        def error(step: float) -> float:
            return calibration.error(codec(step, references, group=False))

        return _coarsest(error, target, start=start, least=deviation / 1000, tries=tries)

    step = options.step or coarsest(0, 5 * target * deviation, _STEPS)
    if not step:
        return DenseCodec.fit(calibration, DenseOptions(k=num_top), fidelity)
    if views is None or not candidates:
        return codec(step)
    fitted = [] if options.references else [codec(step)]
    for references in candidates:
        if len(views) > references:
            own_step = options.step or coarsest(references, step, _STEPS_FROM_NEAR)
            fitted += [codec(own_step, references)] if own_step else []
    affordable = [one for one in fitted if options.references or calibration.fits_memory(one)]
    if not affordable:
        return codec(step, options.references or 0)
    return min(affordable, key=lambda one: calibration.bytes_over_views(one) + calibration.table_bytes(one))


def _coarsest(error_of: Callable[[float], float], target: float, *, start: float, least: float, tries: int) -> float:
    """The coarsest step whose error is found to meet the target; 0 where none does.

    The error rises about in proportion to the step, so the search is a secant in the logarithms.
    """
    step = start
    below, above = 0.0, math.inf  # the largest step that met the target, the smallest that did not
    for _ in range(tries):
        error = error_of(step)
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
        if step < least:
            break
    return below
