"""OFA: One-for-All's adaptive target, on logits (NeurIPS 2023)."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from gdkd_cache.fields import option
from gdkd_cache.limits import LARGEST_FACTOR, LEAST_TEMPERATURE
from gdkd_cache.losses.base import Labels, Logits, Loss, Top
from gdkd_cache.losses.logits import check_logits, wide
from gdkd_cache.losses.partition import label_groups

_MOST_GAMMA = 16  # 2**gamma of the label's weight times T**2 stays far from what float32 can hold


def ofa(
    student: Float[Tensor, "*batch class"],
    teacher: Float[Tensor, "*batch class"],
    labels: Int[Tensor, "*batch"],
    *,
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """One-for-All's loss of logits (Hao et al., NeurIPS 2023, arXiv 2310.19444): the label's target is enhanced.

    With q and p the softmax of s/T and t/T and y the label,

        T**2 * (((1 + p_y)**gamma - 1) * -log q_y + sum_{c != y} p_c**gamma * -log q_c),

    whose gradient at gamma = 1 is that of `kd`.
    This is the authors' code (github.com/Hao840/OFAKD, distillers/ofa.py), which has no T**2 at its T = 1. The paper
    writes (1 + p_y)**gamma, the cross-entropy included, and leaves the other classes at p_c. The paper's exits from
    inner stages need heads of their own, and are not here.

    Args:
        student: [..., class].
        teacher: [..., class]; no gradient flows into it.
        labels: int64 [...] in [0, class).
        gamma: above 0; the code's `eps`, 1 for CIFAR-100 and 1.5 for ImageNet.
        temperature: T > 0.

    Returns:
        Scalar: mean over all leading positions.

    Raises:
        UsageError: shapes differ, fewer than 2 classes, or temperature <= 0.
    """
    check_logits(student, teacher, temperature)
    label = label_groups(teacher.shape, labels).members
    log_q, log_p = ((z / temperature).log_softmax(-1) for z in wide(student, teacher))
    at_label = (gamma * log_p.gather(-1, label).exp().log1p()).expm1()
    weights = (gamma * log_p).exp().scatter(-1, label, at_label)
    return -(weights * log_q).sum(-1).mean() * temperature**2


@dataclass(frozen=True, kw_only=True)
class OFA(Loss):
    """One-for-All on logits: the label's part of the teacher's target is raised by a power of one plus it."""

    needs_labels: ClassVar[bool] = True
    needs_tail: ClassVar[bool] = False

    temperature: float = option(1.0, "T, which logits are divided by", least=LEAST_TEMPERATURE, most=LARGEST_FACTOR)
    gamma: float = option(1.0, "power of the target", above=0, most=_MOST_GAMMA)

    def value(self, student: Logits, teacher: Logits, labels: Labels, top: Top | None) -> Float[Tensor, ""]:
        return ofa(student, teacher, labels, gamma=self.gamma, temperature=self.temperature)

    def logit_sensitivity(self, teacher: Logits, labels: Labels, top: Top) -> Tensor:
        log_p = (teacher / self.temperature).log_softmax(-1)
        label = label_groups(teacher.shape, labels).members
        p = log_p.gather(-1, label).exp()
        moved = (self.gamma * log_p).exp().scatter(-1, label, p * (1 + p) ** (self.gamma - 1))
        return moved * (self.gamma * self.temperature)
