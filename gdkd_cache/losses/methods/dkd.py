"""DKD: decoupled knowledge distillation (CVPR 2022)."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from gdkd_cache.fields import option
from gdkd_cache.limits import LARGEST_FACTOR
from gdkd_cache.losses.base import Labels, Logits, Loss, Top
from gdkd_cache.losses.partition import label_groups, partition_loss, within_groups


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


@dataclass(frozen=True, kw_only=True)
class DKD(Loss):
    """Decoupled knowledge distillation: the label's class against the others, and the others among themselves."""

    needs_labels: ClassVar[bool] = True
    needs_tail: ClassVar[bool] = False

    alpha: float = option(1.0, "weight of the label's mass against the rest", least=0, most=LARGEST_FACTOR)
    beta: float = option(8.0, "weight inside the other classes", least=0, most=LARGEST_FACTOR)

    def value(self, student: Logits, teacher: Logits, labels: Labels, top: Top | None) -> Float[Tensor, ""]:
        return dkd(student, teacher, labels, alpha=self.alpha, beta=self.beta, temperature=self.temperature)

    def logit_sensitivity(self, teacher: Logits, labels: Labels, top: Top) -> Tensor:
        group = label_groups(teacher.shape, labels)
        return within_groups(teacher, group, group_weights=[0.0, self.beta], temperature=self.temperature)
