"""DKD, GDKD and GDKD3: the decoupled losses, as choices of partition and weights."""

from jaxtyping import Float, Int
from torch import Tensor

from gdkd_cache.errors import UsageError
from gdkd_cache.losses.partition import label_groups, partition_loss, ranked_groups


def dkd(
    student: Float[Tensor, "*batch class"],
    teacher: Float[Tensor, "*batch class"],
    labels: Int[Tensor, "*batch"],
    *,
    alpha: float,
    beta: float,
    temperature: float,
) -> Float[Tensor, ""]:
    """Decoupled knowledge distillation (CVPR 2022): groups {label} and the rest.

    Args:
        student: [..., class].
        teacher: [..., class]; no gradient flows into it.
        labels: int64 [...] in [0, class).
        alpha: weight of level 0 (target against non-target mass).
        beta: weight of level 1 inside the non-target classes.
        temperature: T > 0.

    Returns:
        Scalar: mean over all leading positions.

    Raises:
        UsageError: shapes differ, fewer than 2 classes, or temperature <= 0.
    """
    group = label_groups(teacher.shape, labels)
    return partition_loss(student, teacher, group, top_weight=alpha, group_weights=[0.0, beta], temperature=temperature)


def gdkd(
    student: Float[Tensor, "*batch class"],
    teacher: Float[Tensor, "*batch class"],
    *,
    k: int = 5,
    w0: float = 1.0,
    w1: float = 1.0,
    w2: float = 8.0,
    temperature: float = 4.0,
    kl: str = "forward",
    top: Int[Tensor, "*batch rank"] | None = None,
) -> Float[Tensor, ""]:
    """Generalized decoupled knowledge distillation (arXiv 2512.04625): the teacher's top-k and the rest.

    T**2 * (w0 KL(b_t || b_s) + w1 KL_top + w2 KL_rest), b the masses of the two groups.

    Args:
        student: [..., class].
        teacher: [..., class]; no gradient flows into it.
        k: size of the top group, 1 <= k < class.
        w0: weight of the binary top level.
        w1: weight inside the top group.
        w2: weight inside the rest.
        temperature: T > 0.
        kl: `forward`, `reverse` or `both`, inside the groups.
        top: int64 [..., >= k], the exact teacher partition in rank order (`teacher.top` of a cache);
            without it the partition is the teacher argument's top-k, equal logits by ascending class id.

    Returns:
        Scalar: mean over all leading positions.

    Raises:
        UsageError: shapes differ, k, temperature or kl out of range.
    """
    group = ranked_groups(teacher, top, [k])
    return partition_loss(
        student, teacher, group, top_weight=w0, group_weights=[w1, w2], temperature=temperature, kl=kl
    )


def gdkd3(
    student: Float[Tensor, "*batch class"],
    teacher: Float[Tensor, "*batch class"],
    *,
    k: int = 4,
    w0: float = 1.0,
    w1: float = 1.0,
    w2: float = 8.0,
    temperature: float = 4.0,
    kl: str = "forward",
    top: Int[Tensor, "*batch rank"] | None = None,
) -> Float[Tensor, ""]:
    """GDKD with three groups (arXiv 2512.04625): the teacher's top-1, its ranks 2..k, and the rest.

    Arguments and errors as `gdkd`, with 2 <= k < class; w1 weighs ranks 2..k, w2 the rest.
    """
    if k < 2:
        raise UsageError(f"k is {k}; gdkd3 needs k of at least 2: its groups are {{1}}, {{2..k}} and the rest")
    group = ranked_groups(teacher, top, [1, k - 1])
    return partition_loss(
        student, teacher, group, top_weight=w0, group_weights=[0.0, w1, w2], temperature=temperature, kl=kl
    )
