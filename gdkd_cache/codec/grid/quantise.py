"""Rate-distortion-optimised quantisation of blocks: what `transform` does for a row, for a block's cells at once.

For a block's residual R [cell, class], the cosines D [cell, frequency] and the basis U [class, component], chooses
whole numbers q [frequency, component] that minimise

    sum W (R - D q U^T)^2 + penalty * bits(q)

by a continuous start (conjugate gradients) and sweeps over groups of numbers. W is the sensitivity of the declared
losses' gradient to each logit of each cell. Neighbouring frequencies of one component have much to do with each other
where W changes from cell to cell: a group is a quarter of a component's frequencies, none of which are neighbours.
"""

import torch
from torch import Tensor

from gdkd_cache.codec.grid.blocks import CELLS, SIDE

_FLOOR = 0.01
_RIDGE = 6.0
_TURNS = 2
_SWEEPS = 2
_PARITIES = 2


def quantise(
    residual: Tensor,
    weights: Tensor,
    cosines: Tensor,
    basis: Tensor,
    costs: Tensor,
    variances: Tensor,
    penalty: float,
) -> Tensor:
    """Choose the integers.

    Args:
        residual: float32 [block, cell, class], in logits.
        weights: float32 [block, cell, class], W, about 1 on average.
        cosines: float32 [cell, frequency], of nearly unit length.
        basis: float32 [class, component], logits a step; near orthogonal columns.
        costs: float32 [frequency, component, 2], bits of the values +-1 and of each further one; infinite where a
            number must be 0.
        variances: float32 [frequency, component], of the numbers.
        penalty: squared logits a bit; 0 rounds.

    Returns:
        float32 [block, frequency, component], whole numbers.
    """
    numbers = _forward(residual, cosines, basis) / basis.square().sum(0)
    coded = costs[..., 0].isfinite()
    if not penalty:
        return numbers.round_().mul_(coded)
    numbers.mul_(coded)
    weights = weights + _FLOOR
    curvature = _forward(weights, cosines.square(), basis.square()) + 1e-9
    left = (residual - _inverse(numbers, cosines, basis)).mul_(weights)
    ridge = _RIDGE * penalty / variances
    _ridged(numbers, left, weights, cosines, basis, curvature, ridge, coded)
    halves = 0.5 * penalty * costs
    places = torch.arange(CELLS, device=residual.device)
    parity = places // SIDE % _PARITIES * _PARITIES + places % _PARITIES
    groups = [(parity == one).nonzero()[:, 0] for one in range(_PARITIES**2)]
    parts = [(group, cosines[:, group].contiguous(), cosines[:, group].T.contiguous()) for group in groups]
    for sweep in range(_SWEEPS):
        for component, direction in enumerate(basis.unbind(1)):
            for group, part, transposed in parts:
                half = halves[group, component]
                if half[:, 0].isfinite().any():
                    own, steep = numbers[:, group, component], curvature[:, group, component]
                    change, pushed = _chosen(own, left, weights, part, transposed, direction, steep, half, sweep > 0)
                    numbers[:, group, component] = own + change
                    left -= pushed
    return numbers.round_()  # what a sum of floats has left of a fraction


def _forward(blocks: Tensor, cosines: Tensor, basis: Tensor) -> Tensor:
    return cosines.T @ (blocks @ basis)


def _inverse(numbers: Tensor, cosines: Tensor, basis: Tensor) -> Tensor:
    return cosines @ numbers @ basis.T


def _ridged(
    numbers: Tensor,
    left: Tensor,
    weights: Tensor,
    cosines: Tensor,
    basis: Tensor,
    curvature: Tensor,
    ridge: Tensor,
    coded: Tensor,
) -> None:
    """Move the numbers, and what they leave, towards the continuous best that is pulled to 0: conjugate gradients."""
    diagonal = curvature + ridge
    slope = (_forward(left, cosines, basis) - ridge * numbers) * coded
    ahead = slope / diagonal
    along = (slope * ahead).sum((1, 2), keepdim=True)
    for turn in range(_TURNS):
        moved = _inverse(ahead, cosines, basis).mul_(weights)
        pushed = (_forward(moved, cosines, basis) + ridge * ahead) * coded
        far = along / (ahead * pushed).sum((1, 2), keepdim=True).clamp_(min=1e-30)
        numbers.addcmul_(ahead, far)
        left.addcmul_(moved, far, value=-1)
        if turn < _TURNS - 1:
            slope = slope - far * pushed
            turned = slope / diagonal
            before, along = along, (slope * turned).sum((1, 2), keepdim=True)
            ahead = turned + ahead * (along / before.clamp_(min=1e-30))


def _chosen(
    own: Tensor,
    left: Tensor,
    weights: Tensor,
    part: Tensor,
    transposed: Tensor,
    direction: Tensor,
    steep: Tensor,
    half: Tensor,
    guarded: bool,
) -> tuple[Tensor, Tensor]:
    """How a group's numbers change to the best whole ones, each as if the others stayed; and what that takes of `left`.

    Args:
        own, steep: float32 [block, member], the numbers and their curvature.
        left, weights: float32 [block, cell, class].
        part, transposed: float32 [cell, member] and [member, cell].
        direction: float32 [class].
        half: float32 [member, 2], half the penalty of the values +-1, and of each further one.
        guarded: only in blocks that are better for it; the numbers are whole.
    """
    slope = (left @ direction) @ part
    first, more = half.unbind(1)
    best = own + slope / steep
    size = best.abs()
    whole = (size - more / steep).round_().clamp_(min=1).mul_(size > first / steep + 0.5).copysign_(best)
    change = whole - own
    moved = (change @ transposed)[:, :, None] * direction
    pushed = moved * weights
    if guarded:
        gain = (slope * change).sum(-1).sub_((moved * pushed).sum((1, 2)), alpha=0.5)
        better = (gain > _cost(whole, first, more) - _cost(own, first, more)).to(change.dtype)
        change, pushed = change * better[:, None], pushed * better[:, None, None]
    return change, pushed


def _cost(numbers: Tensor, first: Tensor, more: Tensor) -> Tensor:
    """Half the penalty of each block's numbers: float32 [block]."""
    size = numbers.abs()
    finite, further = first.nan_to_num(posinf=0), more.nan_to_num(posinf=0)
    return (size.clamp(max=1) @ finite).add_((size - 1).clamp_(min=0) @ further)
