"""KD: knowledge distillation (Hinton et al., 2015)."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from gdkd_cache.losses.base import Labels, Logits, Loss, Top
from gdkd_cache.losses.partition import one_group, partition_loss, within_groups


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
    return partition_loss(
        student, teacher, one_group(teacher), top_weight=0.0, group_weights=[1.0], temperature=temperature
    )


@dataclass(frozen=True, kw_only=True)
class KD(Loss):
    """Classic knowledge distillation: the divergence of the two distributions at a temperature."""

    needs_tail: ClassVar[bool] = False

    def value(self, student: Logits, teacher: Logits, labels: Labels, top: Top | None) -> Float[Tensor, ""]:
        return kd(student, teacher, temperature=self.temperature)

    def logit_sensitivity(self, teacher: Logits, labels: Labels, top: Top) -> Tensor:
        return within_groups(teacher, one_group(teacher), group_weights=[1.0], temperature=self.temperature)
