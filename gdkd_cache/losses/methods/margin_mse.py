"""Margin-MSE: the label's lead over each other class (arXiv 2010.02666)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gdkd_cache.losses.base import Labels, Logits, Loss, Top
from gdkd_cache.losses.logits import check_logits, wide
from gdkd_cache.losses.partition import label_groups


def margin_mse(
    student: Float[Tensor, "*batch class"],
    teacher: Float[Tensor, "*batch class"],
    labels: Int[Tensor, "*batch"],
) -> Float[Tensor, ""]:
    """Margin-MSE (Hofstaetter et al., arXiv 2010.02666): the label's margins as the teacher's, squared errors.

    mean_{c != y} ((s_y - s_c) - (t_y - t_c))**2, y the label. The paper ranks passages, and has one relevant passage
    and one other in the place of the label and each other class. A temperature would change nothing: logits divided by
    T, times T**2.

    Args:
        student: [..., class].
        teacher: [..., class]; no gradient flows into it.
        labels: int64 [...] in [0, class).

    Returns:
        Scalar: mean over all leading positions.

    Raises:
        UsageError: shapes differ, or fewer than 2 classes.
    """
    check_logits(student, teacher, 1.0)
    s, t = wide(student, teacher)
    apart = s - t
    margins = apart.gather(-1, label_groups(teacher.shape, labels).members) - apart
    return margins.square().sum(-1).mean() / (s.shape[-1] - 1)


@dataclass(frozen=True, kw_only=True)
class MarginMSE(Loss):
    """Squared errors of the margins between the label's logit and each other; the temperature changes nothing."""

    needs_labels: ClassVar[bool] = True

    def value(self, student: Logits, teacher: Logits, labels: Labels, top: Top | None) -> Float[Tensor, ""]:
        return margin_mse(student, teacher, labels)

    def logit_sensitivity(self, teacher: Logits, labels: Labels, top: Top) -> Tensor:
        others = teacher.shape[-1] - 1
        return torch.full_like(teacher, 2 / others).scatter(-1, label_groups(teacher.shape, labels).members, 2.0)
