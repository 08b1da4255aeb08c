"""The one primitive of all the distillation losses: a two-level KL over a partition of the classes.

For teacher logits t, student logits s, temperature T and a partition of the classes into groups g, with
L_g(z) = logsumexp over g of z/T:

- level 0: KL between the group masses, log b_g = L_g - logsumexp_g L_g, always forward, weight w0;
- level 1: for each group g, KL between softmax over g of t/T and of s/T, weight w_g;

summed over classes, averaged over the batch, times T**2 (GDKD, arXiv 2512.04625; DKD, CVPR 2022).
Everything stays in log space in float32 or wider: no log of a sum of probabilities, no finite mask value.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gdkd_cache.errors import UsageError

KL_KINDS = ("forward", "reverse", "both")


def _kl_terms(log_p: Tensor, log_q: Tensor, kind: str) -> Tensor:
    """The summands of KL(p || q) (forward), KL(q || p) (reverse) or their mean (both)."""
    if kind == "forward":
        return log_p.exp() * (log_p - log_q)
    if kind == "reverse":
        return log_q.exp() * (log_q - log_p)
    return 0.5 * (log_p.exp() - log_q.exp()) * (log_p - log_q)


def log_masses(z: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """L_g for every group: [..., class] -> [..., group]."""
    masses = [z.masked_fill(group != g, -torch.inf).logsumexp(-1) for g in range(num_groups)]
    return torch.stack(masses, -1)


def check_logits(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Validate a student/teacher pair and return both divided by the temperature, in float32 or wider.

    Raises:
        UsageError: shapes differ, there are fewer than 2 classes, or temperature <= 0.
    """
    if student.shape != teacher.shape or student.ndim < 1:
        raise UsageError(
            f"student logits are {list(student.shape)}, teacher logits {list(teacher.shape)}; "
            "both must be [..., class] of one shape"
        )
    if student.shape[-1] < 2:
        raise UsageError(f"logits have {student.shape[-1]} classes; distillation needs at least 2")
    if not 0 < temperature < float("inf"):
        raise UsageError(f"temperature is {temperature}; it must be above 0 and finite")
    wide = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return student.to(wide) / temperature, teacher.detach().to(wide) / temperature


def partition_loss(
    student: Float[Tensor, "*batch class"],
    teacher: Float[Tensor, "*batch class"],
    group: Int[Tensor, "*batch class"],
    *,
    top_weight: float,
    group_weights: Sequence[float],
    temperature: float,
    kl: str = "forward",
) -> Float[Tensor, ""]:
    """Two-level KL over a partition of the classes (the equations are at the head of this module).

    Args:
        student: [..., class], any floating dtype; computed in float32 or wider.
        teacher: [..., class]; no gradient flows into it.
        group: int64 [..., class] in [0, len(group_weights)); every group has at least one class in each row.
        top_weight: w0, weight of level 0.
        group_weights: w_g, weight of level 1 of each group; a group of one class has no level 1.
        temperature: T > 0.
        kl: `forward`, `reverse` or `both` (their mean), for level 1 only.

    Returns:
        Scalar: mean over all leading positions.

    Raises:
        UsageError: as `check_logits`; an unknown `kl`.
    """
    if kl not in KL_KINDS:
        raise UsageError(f"kl is {kl!r}; it must be one of {', '.join(KL_KINDS)}")
    s, t = check_logits(student, teacher, temperature)
    num_groups = len(group_weights)
    masses_s, masses_t = log_masses(s, group, num_groups), log_masses(t, group, num_groups)
    within = _kl_terms(t - masses_t.gather(-1, group), s - masses_s.gather(-1, group), kl)
    weights = torch.tensor(group_weights, dtype=s.dtype, device=s.device)[group]
    # A zero weight must also silence an infinite term, so it selects instead of multiplying.
    loss = torch.where(weights != 0, weights * within, 0).sum(-1)
    if num_groups > 1:
        between = _kl_terms(masses_t.log_softmax(-1), masses_s.log_softmax(-1), "forward")
        loss = loss + top_weight * between.sum(-1)
    return loss.mean() * temperature**2


def top_classes(logits: Float[Tensor, "*batch class"], k: int) -> Int[Tensor, "*batch {k}"]:
    """The k classes of largest logit in rank order; equal logits: the lower class id first."""
    return logits.sort(dim=-1, descending=True, stable=True).indices[..., :k]


def ranked_groups(teacher: Tensor, top: Tensor | None, sizes: Sequence[int]) -> Tensor:
    """Group ids by teacher rank: the first sizes[0] classes get 0, the next sizes[1] get 1, ..., the rest last.

    Args:
        teacher: [..., class].
        top: int64 [..., >= sum(sizes)] exact class ids in rank order, or None to rank `teacher` itself.
        sizes: how many classes each leading group has.

    Returns:
        int64 [..., class].

    Raises:
        UsageError: k is not in [1, class), or `top` has another batch shape or fewer classes than needed.
    """
    k, num_classes = sum(sizes), teacher.shape[-1]
    if not 1 <= k < num_classes:
        raise UsageError(f"k is {k}; it must be at least 1 and below the number of classes, {num_classes}")
    if top is None:
        top = top_classes(teacher.detach(), k)
    if top.shape[:-1] != teacher.shape[:-1] or top.shape[-1] < k:
        raise UsageError(
            f"top is {list(top.shape)}; it must hold at least k={k} classes for each row of the logits, "
            f"{list(teacher.shape[:-1])}"
        )
    ranks = torch.arange(len(sizes), device=teacher.device).repeat_interleave(
        torch.tensor(sizes, device=teacher.device)
    )
    group = torch.full(teacher.shape, len(sizes), dtype=torch.int64, device=teacher.device)
    return group.scatter(-1, top[..., :k], ranks.expand(*teacher.shape[:-1], k))


def label_groups(shape: torch.Size, labels: Tensor) -> Tensor:
    """Group ids by label: the label's class gets 0, all others 1: labels int64 [...] -> int64 [..., class].

    Raises:
        UsageError: the labels' shape is not that of the logits without their last axis.
    """
    if labels.shape != shape[:-1]:
        raise UsageError(f"labels are {list(labels.shape)}; the logits need {list(shape[:-1])}")
    group = torch.ones(shape, dtype=torch.int64, device=labels.device)
    return group.scatter(-1, labels.long().unsqueeze(-1), 0)


def within_groups(
    teacher: Float[Tensor, "*batch class"],
    group: Int[Tensor, "*batch class"],
    *,
    group_weights: Sequence[float],
    temperature: float,
) -> Float[Tensor, "*batch class"]:
    """How far a two-level KL's gradient moves with each teacher logit: T w_g p(class | group).

    Args:
        teacher: float32 [..., class].
        group, group_weights, temperature: as for `partition_loss`.
    """
    z = teacher / temperature
    masses = log_masses(z, group, len(group_weights)).gather(-1, group)
    weights = torch.tensor(group_weights, dtype=z.dtype, device=z.device)[group]
    return temperature * weights * (z - masses).exp()


def standardize(logits: Float[Tensor, "*batch class"]) -> Float[Tensor, "*batch class"]:
    """Logit standardization (CVPR 2024): zero mean, unit (n-1) deviation over the classes.

    z -> (z - mean(z)) / (1e-7 + std(z)), in float32 or wider. Apply it to student and teacher alike, then
    call any of the losses: `kd` gives LSKD, `gdkd` gives LS-GDKD.

    Args:
        logits: [..., class], at least 2 classes.

    Returns:
        [..., class].
    """
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (z - z.mean(-1, keepdim=True)) / (1e-7 + z.std(-1, keepdim=True))
