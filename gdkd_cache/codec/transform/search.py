"""The coarsest step at which a transform codec meets a gradient error, and how many references it takes."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from gdkd_cache.codec.base import Codec
from gdkd_cache.codec.dense import DenseCodec, DenseOptions
from gdkd_cache.codec.transform.codec import TransformCodec, TransformOptions
from gdkd_cache.codec.transform.fit import fit_transform, grouped
from gdkd_cache.codec.transform.predict import with_references
from gdkd_cache.codec.transform.statistics import gather_statistics
from gdkd_cache.errors import GdkdCacheError, UsageError

if TYPE_CHECKING:
    from gdkd_cache.codec.calibration import Calibration

_MARGIN = 0.99  # of the target on held-out rows: other views came out up to 0.9% worse
_CLOSE = 0.98
_VALUE = 0.3  # of the target, times the temperature: the step of exact values at which all bytes together are fewest
_STEPS = 8
_STEPS_FROM_NEAR = 3
_ROUGH_ROWS = 1024
_HEAVY = 0.1  # part of a view's bytes that tables may take before fewer components are tried
_LIGHT = 2**15  # bytes of tables below which nothing is gained


def fit_to(calibration: "Calibration", options: TransformOptions, fidelity: float) -> Codec:
    """`transform` at the step of the options or, without one, at the coarsest step that meets a gradient error.

    With as many components and, where the options say nothing, references as take the fewest bytes, tables included.
    Where no step of at least a thousandth of the logits' deviation meets the target, this is `dense`.

    Raises:
        UsageError: more references than the calibration has views for.
    """
    num_top, (logits, labels) = calibration.num_top(options), calibration.fitted
    statistics = calibration.shared(
        ("transform", num_top),
        lambda: gather_statistics(
            logits,
            labels,
            num_top=num_top,
            losses=calibration.request.losses,
            stored_rows=calibration.stored_rows,
        ),
    )
    views, candidates = calibration.views, TransformCodec.reference_candidates(options)
    if options.references and (views is None or len(views) <= options.references):
        raise UsageError(
            f"codec transform with {options.references} references needs as many views and one more to be fitted to"
        )

    target, deviation = fidelity * _MARGIN, max(float(logits.std(-1).mean()), 1e-3)
    scales = (loss.temperature * (deviation if loss.standardize else 1.0) for loss in calibration.request.losses)
    value_step = _VALUE * target * min(scales)

    @lru_cache(maxsize=2)
    def plain(step: float, most: int | None) -> TransformCodec:
        return fit_transform(statistics, step, value_step, most=most)

    def codec(step: float, references: int, most: int | None, *, group: bool = True) -> TransformCodec:
        fitted = replace(plain(step, most))  # what it makes of its tables takes hundreds of MB, and goes with it
        if references:
            assert views is not None
            return with_references(fitted, views, references, group=group)
        return grouped(fitted, statistics) if group else fitted

    def coarsest(references: int, most: int | None, start: float, tries: int) -> float:
        def error(step: float, rough: bool = False) -> float:
            try:
                if rough:
                    return calibration.error(
                        fit_transform(statistics, step, value_step, most=most, rough=True), _ROUGH_ROWS
                    )
                return calibration.error(codec(step, references, most, group=False))
            except GdkdCacheError:  # more steps than a column can hold
                return math.inf

        if options.step:
            return options.step
        search = partial(_coarsest, target=target, least=deviation / 1000, tries=tries)
        near = start if references else search(partial(error, rough=True), start=start) or start
        return search(error, start=near)

    def total_bytes(fitted: TransformCodec) -> float:
        return calibration.total_bytes(calibration.choice(fitted))

    step, most = coarsest(0, None, 5 * target * deviation, _STEPS), None
    if not step:
        return DenseCodec.fit(calibration, DenseOptions(k=num_top), fidelity)
    best = codec(step, 0, most)
    if options.step is None and best.tables_bytes().size > _LIGHT:
        # Components cost their tables: where few rows share these, fewer of them and a finer step may be less.
        least = total_bytes(best)
        while best.num_components > 1 and calibration.table_bytes(best) > _HEAVY * least:
            fewer = best.num_components // 2
            if not (finer := coarsest(0, fewer, step, _STEPS_FROM_NEAR)):
                break
            smaller = codec(finer, 0, fewer)
            if (size := total_bytes(smaller)) >= least:
                break
            best, least, step, most = smaller, size, finer, fewer
    if views is None or not candidates:
        return best
    fitted = [] if options.references else [best]
    for references in candidates:
        if len(views) > references and (own_step := coarsest(references, most, step, _STEPS_FROM_NEAR)):
            fitted.append(codec(own_step, references, most))
    affordable = [one for one in fitted if options.references or calibration.fits_memory(one)]
    if not affordable:
        return codec(step, options.references or 0, most)
    return min(affordable, key=lambda one: calibration.bytes_over_views(one) + calibration.table_bytes(one))


def _coarsest(error_of: Callable[[float], float], target: float, *, start: float, least: float, tries: int) -> float:
    """The coarsest step whose error is found to meet the target; 0 where none does.

    The error rises about in proportion to the step, so the search is one of the regula falsi in the logarithms.
    """
    step, aim = start, target * (1 + _CLOSE) / 2
    below, above = (0.0, 0.0), (math.inf, math.inf)  # step and error: the largest that met the target, the least not
    for _ in range(tries):
        error = error_of(step)
        if error <= target:
            below = (step, error)
            if error >= _CLOSE * target:
                break
        else:
            above = (step, error)
        if below[1] and above[1] < math.inf:
            part = math.log(aim / below[1]) / math.log(above[1] / below[1])
            step = below[0] * (above[0] / below[0]) ** min(max(part, 0.1), 0.9)
        else:
            step *= min(max(aim / error if error else 4.0, 0.1), 4.0) ** 1.2
            if not below[0] < step < above[0]:
                step = above[0] / 2 if not below[0] else below[0] * 2
        if step < least:
            break
    return below[0]
