"""The one primitive of all the distillation losses: a two-level KL over a partition of the classes.

For teacher logits t, student logits s, temperature T and a partition of the classes into groups g, with
L_g(z) = logsumexp over g of z/T:

- level 0: KL between the group masses, log b_g = L_g - logsumexp_g L_g, always forward, weight w0;
- level 1: for each group g, KL between p_g = softmax over g of t/T and q_g of s/T, weight w_g;

summed over classes, averaged over the batch, times T**2 (GDKD, arXiv 2512.04625; DKD, CVPR 2022). Its gradient is
closed: by s/T of a class i in g, with c_g the masses of the student,

    w0 (c_g - b_g) q_g,i + w_g (q_g,i - p_g,i)                              forward
                           w_g q_g,i (log q_g,i - log p_g,i - KL(q_g, p_g))   reverse

Everything stays in log space in float32 or wider: no log of a sum of probabilities, no finite mask value.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gdkd_cache.errors import UsageError
from gdkd_cache.losses.logits import check_logits

_SHARES = {"forward": (1.0, 0.0), "reverse": (0.0, 1.0), "both": (0.5, 0.5)}
KL_KINDS = tuple(_SHARES)
_SELECTED_CLASSES = 256
_ELEMENTS_OF_A_THREAD = 2**17
_MOST_ELEMENTS = 2**25


class Partition(NamedTuple):
    """Groups of classes for each row: some are listed, the last one is the rest.

    Attributes:
        members: int64 [..., member], the classes of the listed groups, group by group.
        sizes: how many of them each listed group has; the rest is never empty.
    """

    members: Tensor
    sizes: tuple[int, ...]


def partition_loss(
    student: Float[Tensor, "*batch class"],
    teacher: Float[Tensor, "*batch class"],
    partition: Partition,
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
        partition: of the classes, one for each row.
        top_weight: w0, weight of level 0.
        group_weights: w_g, weight of level 1 of each listed group, then of the rest; a group of one class has none.
        temperature: T > 0.
        kl: `forward`, `reverse` or `both` (their mean), for level 1 only.

    Returns:
        Scalar: mean over all leading positions. It has no second derivative.

    Raises:
        UsageError: as `check_logits`; an unknown `kl`.
    """
    if kl not in KL_KINDS:
        raise UsageError(f"kl is {kl!r}; it must be one of {', '.join(KL_KINDS)}")
    check_logits(student, teacher, temperature)
    return _PartitionLoss.apply(  # pyright: ignore[reportReturnType]  (torch types it as anything)
        student, teacher, partition, (top_weight, *group_weights), temperature, kl
    )


def _elements_at_once(device: torch.device) -> int:
    """Logits whose temporaries stay in the caches of a CPU; elsewhere, what bounds their memory."""
    return _ELEMENTS_OF_A_THREAD * torch.get_num_threads() if device.type == "cpu" else _MOST_ELEMENTS


class _PartitionLoss(torch.autograd.Function):
    """The loss and, made with it, its gradient: the backward pass only scales that."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        partition: Partition,
        weights: Sequence[float],
        temperature: float,
        kl: str,
    ) -> Tensor:
        num_classes = student.shape[-1]
        wide = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
        s, t = student.reshape(-1, num_classes), teacher.reshape(-1, num_classes)
        members = partition.members.reshape(len(s), -1)
        gradient = torch.empty_like(s, dtype=wide, memory_format=torch.contiguous_format)
        # Some rows at a time: their temporaries stay in a processor's cache, and take no memory to speak of.
        at_once = max(1, _elements_at_once(s.device) // num_classes)
        value = gradient.new_zeros(())
        for start in range(0, len(s), at_once):
            rows = slice(start, start + at_once)
            both = torch.stack((s[rows].to(wide), t[rows].to(wide))).div_(temperature)
            value += _two_levels(both, Partition(members[rows], partition.sizes), weights, kl, gradient[rows])
        ctx.save_for_backward(student, gradient)
        ctx.shape, ctx.dtype, ctx.scale = student.shape, student.dtype, temperature / max(len(s), 1)
        return value.mul_(temperature * ctx.scale) if len(s) else value / 0  # the mean of nothing

    @staticmethod
    def backward(ctx: Any, *scale: Tensor) -> tuple[Tensor | None, ...]:
        student, gradient = ctx.saved_tensors
        by = scale[0] * ctx.scale
        # Nothing is recorded unless a second derivative is asked for.
        scaled = _Scaled.apply(student, gradient, by) if torch.is_grad_enabled() else gradient * by
        assert isinstance(scaled, Tensor)
        return scaled.reshape(ctx.shape).to(ctx.dtype), None, None, None, None, None


class _Scaled(torch.autograd.Function):
    """The gradient, which depends on the student's logits and has no derivative by them."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, gradient: Tensor, scale: Tensor) -> Tensor:
        return gradient * scale

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise UsageError("the distillation losses have no second derivative: their gradient is made with the loss")


def _two_levels(both: Tensor, partition: Partition, weights: Sequence[float], kl: str, gradient: Tensor) -> Tensor:
    """The sum of the rows' losses, and their gradients.

    Few operations, each on all groups or on one whole: of small batches they cost more than the arithmetic.

    Args:
        both: [2, row, class], the logits of the student and of the teacher, divided by T; overwritten.
        partition: members int64 [row, member].
        weights: w0, then w_g of each group.
        kl: of level 1.
        gradient: [row, class], where the gradient by the student's is put.

    Returns:
        Scalar.
    """
    members, sizes = partition
    groups = [both]
    if sizes:
        listed = members.expand(2, -1, -1)
        groups = [*both.gather(-1, listed).split(sizes, -1), both]
        both.scatter_(-1, listed, -torch.inf)
    # Of few classes the logarithm and its power take a third of the time of a softmax, of many twice as long.
    softened = [*(group.log_softmax(-1).exp_() for group in groups[:-1]), both.softmax(-1)]
    # The logarithm of each group's sum of powers, from its largest, which a softmax keeps exactly enough.
    masses = torch.stack(
        [group.amax(-1) - soft.amax(-1).log_() for group, soft in zip(groups, softened, strict=True)], -1
    )
    log_masses, masses_apart = masses.log_softmax(-1), masses[1] - masses[0]
    both_masses = log_masses.exp()
    value = _dot(both_masses[1], log_masses[1] - log_masses[0]).mul_(weights[0])
    between = (both_masses[0] - both_masses[1]).mul_(weights[0])
    forward_share, reverse_share = _SHARES[kl]
    parts = []
    for number, (group, soft, weight) in enumerate(zip(groups, softened, weights[1:], strict=True)):
        part, p, factor = soft[0], soft[1], between[:, number, None]
        parts.append(part)
        if weight == 0 or group.shape[-1] == 1:  # a zero weight silences a term that is infinite too
            part.mul_(factor)
            continue
        apart = (group[1] - group[0]).sub_(masses_apart[:, number, None])  # log p - log q
        if group is both and sizes:
            apart.scatter_(-1, members, 0)
        forward, reverse = forward_share * weight, reverse_share * weight
        if forward:
            value.add_(_dot(p, apart), alpha=forward)
            factor = factor + forward
        if reverse:
            inside = (part * apart).sum(-1, keepdim=True)
            value.sub_(inside.sum(), alpha=reverse)
            factor = torch.sub(inside, apart).mul_(reverse).add_(factor)
        part.mul_(factor)
        if forward:
            part.sub_(p, alpha=forward)
    gradient.copy_(parts.pop())
    if sizes:
        gradient.scatter_(-1, members, torch.cat(parts, -1) if len(sizes) > 1 else parts[0])
    return value


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """The sum of the products of two tensors of one shape."""
    return torch.dot(one.reshape(-1), other.reshape(-1))


def top_classes(logits: Float[Tensor, "*batch class"], k: int) -> Int[Tensor, "*batch {k}"]:
    """The k classes of largest logit in rank order; equal logits: the lower class id first."""
    num_classes = logits.shape[-1]
    if num_classes < _SELECTED_CLASSES or k > num_classes // 4 or logits.device.type != "cpu":
        # Of few classes sorting is as fast; and to look for ties, as below, would wait for an accelerator.
        return logits.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    # A few of many are selected, then put in order; where others equal the last of them, the whole row is sorted.
    values, classes = logits.topk(k)
    classes = classes.sort(dim=-1).values
    order = logits.gather(-1, classes).sort(dim=-1, descending=True, stable=True).indices
    classes, last = classes.gather(-1, order), values[..., -1:]
    if (tied := (logits >= last).sum(-1) != k).any():
        classes[tied] = logits[tied].sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return classes


def ranked_groups(teacher: Tensor, top: Tensor | None, sizes: Sequence[int]) -> Partition:
    """Groups by teacher rank: the first sizes[0] classes, the next sizes[1], ..., and the rest.

    Args:
        teacher: [..., class].
        top: int64 [..., >= sum(sizes)] exact class ids in rank order, or None to rank `teacher` itself.
        sizes: how many classes each listed group has.

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
    return Partition(top[..., :k], tuple(sizes))


def label_groups(shape: torch.Size, labels: Tensor) -> Partition:
    """The label's class, and the rest: labels int64 [...] of logits of `shape`, [..., class].

    Raises:
        UsageError: the labels' shape is not that of the logits without their last axis.
    """
    if labels.shape != shape[:-1]:
        raise UsageError(f"labels are {list(labels.shape)}; the logits need {list(shape[:-1])}")
    return Partition(labels.long().unsqueeze(-1), (1,))


def one_group(teacher: Tensor) -> Partition:
    """All classes together."""
    return Partition(torch.zeros((*teacher.shape[:-1], 0), dtype=torch.int64, device=teacher.device), ())


def within_groups(
    teacher: Float[Tensor, "*batch class"],
    partition: Partition,
    *,
    group_weights: Sequence[float],
    temperature: float,
) -> Float[Tensor, "*batch class"]:
    """How far a two-level KL's gradient moves with each teacher logit: T w_g p(class | group).

    Args:
        teacher: float32 [..., class].
        partition, group_weights, temperature: as for `partition_loss`.
    """
    members, sizes = partition
    z = teacher / temperature
    listed = [group.softmax(-1) for group in z.gather(-1, members).split(sizes, -1)] if sizes else []
    *listed_weights, rest_weight = group_weights
    moved = z.scatter(-1, members, -torch.inf).softmax(-1).mul_(rest_weight)
    for group, weight in zip(listed, listed_weights, strict=True):
        group.mul_(weight)
    return (moved.scatter_(-1, members, torch.cat(listed, -1)) if listed else moved).mul_(temperature)


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
