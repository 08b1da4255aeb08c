"""PLD: Plackett-Luce distillation (arXiv 2506.12542)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gdkd_cache.fields import option
from gdkd_cache.limits import LARGEST_FACTOR, LEAST_TEMPERATURE
from gdkd_cache.losses.base import Labels, Logits, Loss, Top
from gdkd_cache.losses.logits import check_logits, wide
from gdkd_cache.losses.partition import label_groups


def pld(
    student: Float[Tensor, "*batch class"],
    teacher: Float[Tensor, "*batch class"],
    labels: Int[Tensor, "*batch"],
    *,
    temperature: float = 1.0,
    top: Int[Tensor, "*batch rank"] | None = None,
) -> Float[Tensor, ""]:
    """Plackett-Luce distillation (Bassam et al., NeurIPS 2025, arXiv 2506.12542, section 4.2).

    With the order o of the classes, the label first and the others by falling teacher logit (section 4.1),

        T**2 * sum_k p_o(k) * (log sum_{l >= k} exp(s_o(l) / T) - s_o(k) / T),    p = softmax(t / T).

    The paper has T = 1. It takes the place of the cross-entropy too: of a teacher that is sure of the label it is that.

    Args:
        student: [..., class].
        teacher: [..., class]; no gradient flows into it.
        labels: int64 [...] in [0, class).
        temperature: T > 0.
        top: int64 [..., rank], the teacher's exact first classes in rank order; without it, equal logits are ordered
            by ascending class id.

    Returns:
        Scalar: mean over all leading positions.

    Raises:
        UsageError: shapes differ, fewer than 2 classes, or temperature <= 0.
    """
    check_logits(student, teacher, temperature)
    label = label_groups(teacher.shape, labels).members
    s, t = (z / temperature for z in wide(student, teacher))
    worth = t
    if top is not None:
        ahead = torch.arange(top.shape[-1], 0, -1, dtype=t.dtype, device=t.device)
        worth = t.scatter(-1, top, t.amax(-1, keepdim=True) + ahead)
    order = worth.scatter(-1, label, torch.inf).sort(dim=-1, descending=True, stable=True).indices
    s, weights = s.gather(-1, order), t.softmax(-1).gather(-1, order)
    left = s.flip(-1).logcumsumexp(-1).flip(-1)
    return (weights * (left - s)).sum(-1).mean() * temperature**2


@dataclass(frozen=True, kw_only=True)
class PLD(Loss):
    """List-wise: the teacher's ranking with the label first, each choice weighed by the teacher's probability."""

    needs_labels: ClassVar[bool] = True

    temperature: float = option(1.0, "T, which logits are divided by", least=LEAST_TEMPERATURE, most=LARGEST_FACTOR)

    def value(self, student: Logits, teacher: Logits, labels: Labels, top: Top | None) -> Float[Tensor, ""]:
        return pld(student, teacher, labels, temperature=self.temperature, top=top)

    def logit_sensitivity(self, teacher: Logits, labels: Labels, top: Top) -> Tensor:
        return (teacher / self.temperature).softmax(-1) * self.temperature
