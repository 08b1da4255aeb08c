"""SinKD: the batch-wise Sinkhorn distance (LREC-COLING 2024)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gdkd_cache.fields import option
from gdkd_cache.limits import LARGEST_FACTOR, LEAST_TEMPERATURE
from gdkd_cache.losses.base import Labels, Logits, Loss, Top
from gdkd_cache.losses.logits import check_logits, rows_of


def sinkd(
    student: Float[Tensor, "*batch class"],
    teacher: Float[Tensor, "*batch class"],
    *,
    blur: float = 0.1,
    iterations: int = 20,
    temperature: float = 2.0,
) -> Float[Tensor, ""]:
    """Batch-wise Sinkhorn distance (Cui et al., LREC-COLING 2024, arXiv 2402.17110).

    The cost of moving a student's row to a teacher's is D_ij = ||q_i - p_j||_1, q and p the softmax of s/T and t/T.
    The plan P starts as exp(-D / blur); its rows, then its columns, are made to sum to 1, so many times; the loss is
    sum_ij P_ij D_ij over the number of rows. All rows that are given together are coupled: it takes rows**2 * classes.

    As in the paper's method and the authors' code (github.com/2018cx/SinKD, loss.py), the gradient goes through the
    iterations. That code takes the sum over the rows, times 0.001; neither multiplies by T**2, nor does this. The plan
    is kept as logarithms, so that no blur makes it 0.

    Args:
        student: [..., class].
        teacher: [..., class]; no gradient flows into it.
        blur: the entropic regularization, above 0; the paper's lambda.
        iterations: at least 1.
        temperature: T > 0.

    Returns:
        Scalar: mean over all leading positions.

    Raises:
        UsageError: shapes differ, fewer than 2 classes, or temperature <= 0.
    """
    check_logits(student, teacher, temperature)
    q, p = ((z / temperature).softmax(-1) for z in rows_of(student, teacher))
    costs = torch.cdist(q, p, p=1)
    plan = costs / -blur
    for _ in range(iterations):
        plan = plan.log_softmax(1).log_softmax(0)
    return (plan.exp() * costs).sum() / len(q)


@dataclass(frozen=True, kw_only=True)
class SinKD(Loss):
    """The Sinkhorn distance between a batch of the student's distributions and the teacher's."""

    temperature: float = option(2.0, "T, which logits are divided by", least=LEAST_TEMPERATURE, most=LARGEST_FACTOR)
    blur: float = option(0.1, "entropic regularization of the plan", least=1e-4, most=LARGEST_FACTOR)
    iterations: int = option(20, "of rows and columns", least=1, most=1000)

    def value(self, student: Logits, teacher: Logits, labels: Labels, top: Top | None) -> Float[Tensor, ""]:
        return sinkd(student, teacher, blur=self.blur, iterations=self.iterations, temperature=self.temperature)

    def logit_sensitivity(self, teacher: Logits, labels: Labels, top: Top) -> Tensor:
        return (teacher / self.temperature).softmax(-1)
