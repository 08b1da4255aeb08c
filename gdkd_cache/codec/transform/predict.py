"""Let a fitted transform codec predict views from the first ones of their image: its factors and cost models.

A view's coefficients deviate from what the class means let expect. What they deviate by is predicted as the mean of
what the references do, weighted by how near these are, times a factor for the component and number of references.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from gdkd_cache.codec.base import References, exact_top
from gdkd_cache.codec.transform.codec import DEVIATION_UNIT, FACTOR_ONE, QUARTERS, TransformCodec
from gdkd_cache.codec.transform.fit import TRUSTED_VARIANCE
from gdkd_cache.codec.transform.patterns import column_costs, group_columns
from gdkd_cache.codec.views import SampledViews
from gdkd_cache.threads import one_thread

_PASSES = 2
_DOUBT = 4.0  # steps squared that a mean is thought to have beside its own: factors of few rows are smaller
_LEAST_FACTOR = 8  # below it a component's prediction is not worth holding the references' deviations
_MOST_FACTOR = 2 * FACTOR_ONE


@one_thread()
def with_references(codec: TransformCodec, views: SampledViews, num_references: int, *, group: bool) -> TransformCodec:
    """The same codec, with references.

    Args:
        codec: one without, fitted at the step that it shall have.
        views: more than `num_references` of them; rows to fit to.
        num_references: at least 1.
        group: merge columns into bytes; without it (which is faster) the reconstruction is the same.
    """
    tables, num_components = codec.tables, codec.num_components
    factors = np.zeros((num_references, num_components), np.int16)
    fitted = replace(
        codec,
        references=num_references,
        tables=replace(
            tables,
            factors=factors,
            reference_variances=tables.variances,
            reference_costs=tables.costs,
            reference_groups=tables.groups,
        ),
    )
    deviations: list[Tensor] = []
    references: list[Tensor] = []
    for view in range(num_references):
        known = views.near(view, deviations)
        if known is not None:
            factors[view - 1] = _regressed(codec, views, [(view, known)])[0]
            fitted = _changed(fitted, factors=factors.copy())
        references.append(fitted.quantised(views.logits[view], views.labels, known))
        deviations.append(fitted.deviation(references[-1][:, :num_components], known))
    later = [(view, known) for view in range(num_references, len(views)) if (known := views.near(view, deviations))]
    factors[-1], variances = _regressed(codec, views, later)
    num_predicted = max(int(np.flatnonzero(factors.any(0)).max(initial=0)) + 1, 1)
    signed = tables.costs[:, 0].astype(bool)
    symbols = torch.cat(references).numpy()
    fitted = _changed(
        fitted, factors=factors[:, :num_predicted], variances=variances, reference_costs=column_costs(symbols, signed)
    )
    if group:
        fitted = _changed(fitted, reference_groups=group_columns(fitted.tables.reference_costs, symbols))
    later = [(view, References(known.deviations[..., :num_predicted], known.weights)) for view, known in later]
    for _ in range(_PASSES):
        parts = [fitted.quantised(views.logits[view], views.labels, known) for view, known in later]
        symbols = torch.cat(parts).numpy()
        fitted = _changed(fitted, costs=column_costs(symbols, signed))
    return _changed(fitted, groups=group_columns(fitted.tables.costs, symbols)) if group else fitted


def _changed(codec: TransformCodec, **tables: np.ndarray) -> TransformCodec:
    return replace(codec, tables=replace(codec.tables, **tables))


def _regressed(
    codec: TransformCodec, views: SampledViews, known: Iterable[tuple[int, References]]
) -> tuple[np.ndarray, np.ndarray]:
    """The factors, int16 [component], with which the means say most, and what they leave, in steps squared.

    Args:
        codec: without references.
        views: of the rows.
        known: views, and what each is predicted from.
    """
    basis = torch.from_numpy(codec.tables.basis).float() * (codec.step / codec.basis_scale)
    own, means = [], []
    for view, (deviations, weights) in known:
        logits = views.logits[view]
        _, residual, _ = codec.residual(logits, exact_top(logits, 1).classes[:, 0], views.labels)
        own.append(residual @ basis / basis.square().sum(0))
        mean = (weights[:, None].float() @ deviations.float())[:, 0] / weights.sum(-1, keepdim=True)
        means.append(mean * (DEVIATION_UNIT / QUARTERS))
    x, mean = torch.cat(own).double(), torch.cat(means).double()
    best = (x * mean).sum(0) / (mean.square().sum(0) + _DOUBT)
    factors = (best * FACTOR_ONE).round().clamp(0, _MOST_FACTOR)
    factors[factors < _LEAST_FACTOR] = 0
    left = (x - mean * factors / FACTOR_ONE).square().mean(0)
    return factors.short().numpy(), left.clamp(min=TRUSTED_VARIANCE).float().numpy()
