"""The quantiser of few classes, and of gdkd-cache 0.1.0, whose caches go on with the same bytes: one after the other.

What it minimises is told in quantise.py. The components of few classes have much to do with each other; they are few
as well, so that going over them in turn costs little.
"""

import torch
from torch import Tensor

_FLOOR = 0.01
_SWEEPS = 3
_BLOCK = 16
_RIDGE = 6.0


def quantise_in_turn(
    residual: Tensor, weights: Tensor, basis: Tensor, costs: Tensor, variances: Tensor, penalty: float
) -> Tensor:
    """Choose the integers; arguments and result are those of `quantise`."""
    w = (weights + _FLOOR).T.contiguous()
    r = residual.T.contiguous()
    q = (basis.T @ r) / basis.square().sum(0)[:, None]
    if not penalty:
        return q.round().T
    error = w * (r - basis @ q)
    inverse = 1 / (basis.square().T @ w + 1e-9)
    ridge = _RIDGE * penalty / variances
    # Unbound once: indexing a row of a tensor costs more than the arithmetic on it.
    least = (0.5 * penalty * costs[:, :1] * inverse).add_(0.5).unbind()
    shrink = (0.5 * penalty * costs[:, 1:] * inverse).unbind()
    start = (1 / (1 / inverse + ridge[:, None])).unbind()
    gain, rows = inverse.unbind(), q.unbind()
    blocks = []
    for first in range(0, len(q), _BLOCK):
        part = basis[:, first : first + _BLOCK]
        width = part.shape[1]
        products = (part[:, :, None] * part[:, None, :]).reshape(len(part), width * width)
        gram = (products.T @ w).view(width, width, -1).unbind()
        blocks.append((slice(first, first + width), part, part.T.contiguous(), gram))
    for sweep in range(_SWEEPS + 1):
        for columns, part, transposed, gram in blocks:
            gradient, before = transposed @ error, q[columns].clone()
            for j, (slope, curvature) in enumerate(zip(gradient.unbind(), gram, strict=True), columns.start):
                if sweep == 0:  # a continuous start, pulled to zero
                    change = torch.addcmul(slope, rows[j], ridge[j], value=-1).mul_(start[j])
                else:
                    best = torch.addcmul(rows[j], slope, gain[j])
                    size = best.abs()
                    whole = torch.sub(size, shrink[j]).round_().clamp_(min=1).mul_(size > least[j])
                    change = whole.copysign_(best).sub_(rows[j])
                rows[j].add_(change)
                gradient.addcmul_(curvature, change, value=-1)
            error.addcmul_(w, part @ (before - q[columns]))
    return q.T
