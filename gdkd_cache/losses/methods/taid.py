"""TAID: a target between student and teacher (ICLR 2025)."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from gdkd_cache.fields import option
from gdkd_cache.limits import LARGEST_FACTOR, LEAST_TEMPERATURE
from gdkd_cache.losses.base import Labels, Logits, Loss, Top
from gdkd_cache.losses.logits import check_logits, wide
from gdkd_cache.losses.partition import one_group, partition_loss, within_groups


def taid(
    student: Float[Tensor, "*batch class"],
    teacher: Float[Tensor, "*batch class"],
    *,
    share: float = 0.7,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Interpolated distillation (Shing et al., ICLR 2025, arXiv 2501.16937): the teacher, part of the way from here.

    T**2 * KL(softmax(r / T) || softmax(s / T)), with the target r = (1 - share) * s + share * t, whose s is a constant
    to the gradient. The paper has T = 1. The authors' code (github.com/SakanaAI/TAID, src/distil_losses/taid.py) takes
    the cross-entropy, of the same gradient, instead of the divergence.

    The paper's share rises from 0.4 to 1 as the training goes on, faster while the loss falls: that takes the last
    loss and a momentum from step to step, which a task can hold and a function of one batch cannot.

    Args:
        student: [..., class].
        teacher: [..., class]; no gradient flows into it.
        share: of the teacher in the target, in [0, 1]; 1 is `kd`.
        temperature: T > 0.

    Returns:
        Scalar: mean over all leading positions.

    Raises:
        UsageError: shapes differ, fewer than 2 classes, or temperature <= 0.
    """
    check_logits(student, teacher, temperature)
    s, t = wide(student, teacher)
    target = s.detach().lerp(t, share)
    return partition_loss(
        student, target, one_group(target), top_weight=0.0, group_weights=[1.0], temperature=temperature
    )


@dataclass(frozen=True, kw_only=True)
class TAID(Loss):
    """The divergence from a target that lies between the student's logits and the teacher's."""

    temperature: float = option(1.0, "T, which logits are divided by", least=LEAST_TEMPERATURE, most=LARGEST_FACTOR)
    share: float = option(0.7, "of the teacher in the target", least=0, most=1)

    def value(self, student: Logits, teacher: Logits, labels: Labels, top: Top | None) -> Float[Tensor, ""]:
        return taid(student, teacher, share=self.share, temperature=self.temperature)

    def logit_sensitivity(self, teacher: Logits, labels: Labels, top: Top) -> Tensor:
        # Of a uniform student, whose target is the teacher at a higher temperature.
        target = teacher * self.share
        return within_groups(target, one_group(target), group_weights=[self.share], temperature=self.temperature)
