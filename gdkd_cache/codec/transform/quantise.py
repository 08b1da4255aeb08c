"""Rate-distortion-optimised quantisation: integers that keep the distillation gradient for the fewest bits.

For a residual r [class] and basis B [class, component], chooses whole numbers q that minimise

    sum_c W_c (r_c - (B q)_c)^2 + penalty * bits(q)

by coordinate descent. W is the diagonal sensitivity of the declared losses' gradient to each logit; at equal
gradient error this saves a fifth of the bytes against rounding (README.md in this folder).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gdkd_cache.losses.base import Loss

_FLOOR = 0.01
POWER = 1.2
"""(w p)^2 is the squared Jacobian's diagonal; flattened, it measured 2 to 8% better at equal error."""
_SWEEPS = 3
_BLOCK = 16
_RIDGE = 6.0


def sensitivity(losses: Sequence[Loss], logits: Tensor, labels: Tensor, top: Tensor, power: float = POWER) -> Tensor:
    """How much the gradient of the declared losses moves with each logit: float32 [row, class] >= 0.

    The diagonal of the gradient's Jacobian, T w_g p(class | group), to some power; the largest over the losses.
    """
    most = torch.zeros_like(logits)
    for loss in losses:
        moved = loss.sensitivity(logits, labels, top)
        if moved is None:  # nothing is known: plain squared error
            moved = torch.ones_like(logits)
        most = torch.maximum(most, moved.nan_to_num(0, 0, 0).pow(power))
    return most


def quantise(
    residual: Tensor,
    weights: Tensor,
    basis: Tensor,
    costs: Tensor,
    variances: Tensor,
    penalty: float,
    *,
    mirrored: bool = True,
) -> Tensor:
    """Choose the integers.

    Args:
        residual: float32 [row, class], in logits.
        weights: float32 [row, class], W, about 1 on average.
        basis: float32 [class, component], logits a step; near orthogonal columns.
        costs: float32 [component, 2], bits of the values +-1 and of each further one.
        variances: float32 [component], of the coefficients in steps squared: the continuous start is pulled to 0
            where they are small.
        penalty: squared logits a bit; 0 rounds.
        mirrored: compute half of what is symmetric; the first encoder did not, and its last bits were others.

    Returns:
        float32 [row, component], whole numbers.
    """
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
        gram = (_mirrored_gram if mirrored else _gram)(part, w).unbind()
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


def _gram(part: Tensor, w: Tensor) -> Tensor:
    """Each row's B^T W B of a block of components: [component, component, row]."""
    width = part.shape[1]
    products = (part[:, :, None] * part[:, None, :]).reshape(len(part), width * width)
    return (products.T @ w).view(width, width, -1)


def _mirrored_gram(part: Tensor, w: Tensor) -> Tensor:
    """The same in half the products."""
    width = part.shape[1]
    first, second = torch.triu_indices(width, width)
    place = torch.empty(width, width, dtype=torch.int64)
    place[first, second] = place[second, first] = torch.arange(len(first))
    return ((part[:, first] * part[:, second]).T @ w)[place]
