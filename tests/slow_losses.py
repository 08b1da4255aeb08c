"""The two-level loss as its equations say it, by autograd: what the fast one is compared with."""

from collections.abc import Sequence

import torch
from torch import Tensor


def _kl_terms(log_p: Tensor, log_q: Tensor, kind: str) -> Tensor:
    """The summands of KL(p || q) (forward), KL(q || p) (reverse) or their mean (both)."""
    if kind == "forward":
        return log_p.exp() * (log_p - log_q)
    if kind == "reverse":
        return log_q.exp() * (log_q - log_p)
    return 0.5 * (log_p.exp() - log_q.exp()) * (log_p - log_q)


def _log_masses(z: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """L_g for every group: [..., class] -> [..., group]."""
    masses = [z.masked_fill(group != g, -torch.inf).logsumexp(-1) for g in range(num_groups)]
    return torch.stack(masses, -1)


def slow_partition_loss(
    student: Tensor,
    teacher: Tensor,
    group: Tensor,
    *,
    top_weight: float,
    group_weights: Sequence[float],
    temperature: float,
    kl: str = "forward",
) -> Tensor:
    """As `partition_loss`, of group ids int64 [..., class] in [0, len(group_weights))."""
    s, t = student / temperature, teacher / temperature
    num_groups = len(group_weights)
    masses_s, masses_t = _log_masses(s, group, num_groups), _log_masses(t, group, num_groups)
    within = _kl_terms(t - masses_t.gather(-1, group), s - masses_s.gather(-1, group), kl)
    weights = torch.tensor(group_weights, dtype=s.dtype)[group]
    loss = torch.where(weights != 0, weights * within, 0).sum(-1)
    if num_groups > 1:
        between = _kl_terms(masses_t.log_softmax(-1), masses_s.log_softmax(-1), "forward")
        loss = loss + top_weight * between.sum(-1)
    return loss.mean() * temperature**2
