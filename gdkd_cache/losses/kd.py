"""Knowledge distillation, and the logit standardization that may precede any of the losses."""

import torch
from jaxtyping import Float
from torch import Tensor

from gdkd_cache.losses.partition import partition_loss


def kd(
    student: Float[Tensor, "*batch class"], teacher: Float[Tensor, "*batch class"], *, temperature: float
) -> Float[Tensor, ""]:
    """Classic knowledge distillation (Hinton et al., 2015): T**2 * KL(softmax(t/T) || softmax(s/T)).

    Args:
        student: [..., class].
        teacher: [..., class]; no gradient flows into it.
        temperature: T > 0.

    Returns:
        Scalar: mean over all leading positions.

    Raises:
        UsageError: shapes differ, fewer than 2 classes, or temperature <= 0.
    """
    one_group = torch.zeros(teacher.shape, dtype=torch.int64, device=teacher.device)
    return partition_loss(student, teacher, one_group, top_weight=0.0, group_weights=[1.0], temperature=temperature)


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
