"""DIST: distillation from a stronger teacher, by correlations (NeurIPS 2022)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gdkd_cache.fields import option
from gdkd_cache.limits import LARGEST_FACTOR, LEAST_TEMPERATURE
from gdkd_cache.losses.base import Labels, Logits, Loss, Top
from gdkd_cache.losses.logits import check_logits, rows_of

_LEAST_NORM = 1e-8


def dist(
    student: Float[Tensor, "*batch class"],
    teacher: Float[Tensor, "*batch class"],
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """DIST (Huang et al., NeurIPS 2022, arXiv 2205.10536): one minus the Pearson correlations of probabilities.

    With q and p the softmax of s/T and t/T as matrices [row, class] and r Pearson's correlation,

        T**2 * (beta * mean_i (1 - r(q_i:, p_i:)) + gamma * mean_c (1 - r(q_:c, p_:c))),

    the paper's inter-class and intra-class relation. The second couples all rows that are given together. A row or
    column that does not vary correlates with nothing. T**2 and the norms' least size of 1e-8 are the authors' code's
    (github.com/hunto/DIST_KD); that adds it to the norms' product, this to each norm's square.

    Args:
        student: [..., class].
        teacher: [..., class]; no gradient flows into it.
        beta: weight of the correlations over the classes.
        gamma: weight of those over the rows.
        temperature: T > 0.

    Returns:
        Scalar.

    Raises:
        UsageError: shapes differ, fewer than 2 classes, or temperature <= 0.
    """
    check_logits(student, teacher, temperature)
    q, p = ((z / temperature).softmax(-1) for z in rows_of(student, teacher))
    apart = [1 - (_unit(q, dim) * _unit(p, dim)).sum(dim).mean() for dim in (-1, 0)]
    return (beta * apart[0] + gamma * apart[1]) * temperature**2


def _unit(table: Tensor, dim: int) -> Tensor:
    """What deviates from the mean along a dimension, of norm 1; a student that is uniform has a gradient too."""
    centred = table - table.mean(dim, keepdim=True)
    return centred * torch.rsqrt(centred.square().sum(dim, keepdim=True) + _LEAST_NORM**2)


@dataclass(frozen=True, kw_only=True)
class DIST(Loss):
    """Correlations of the probabilities, over the classes of a row and over the rows of a batch."""

    temperature: float = option(1.0, "T, which logits are divided by", least=LEAST_TEMPERATURE, most=LARGEST_FACTOR)
    beta: float = option(1.0, "weight of the correlations over the classes", least=0, most=LARGEST_FACTOR)
    gamma: float = option(1.0, "weight of the correlations over the rows of a batch", least=0, most=LARGEST_FACTOR)

    def value(self, student: Logits, teacher: Logits, labels: Labels, top: Top | None) -> Float[Tensor, ""]:
        return dist(student, teacher, beta=self.beta, gamma=self.gamma, temperature=self.temperature)

    def logit_sensitivity(self, teacher: Logits, labels: Labels, top: Top) -> Tensor:
        return _unit((teacher / self.temperature).softmax(-1), -1).abs()
