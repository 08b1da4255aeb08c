"""BD-KD: balanced forward and reverse divergences (arXiv 2212.12965)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gdkd_cache.fields import option
from gdkd_cache.limits import LARGEST_FACTOR
from gdkd_cache.losses.base import Labels, Logits, Loss, Top
from gdkd_cache.losses.logits import check_logits, wide


def bdkd(
    student: Float[Tensor, "*batch class"],
    teacher: Float[Tensor, "*batch class"],
    *,
    favour: float = 2.0,
    temperature: float = 4.0,
) -> Float[Tensor, ""]:
    """Balanced divergences (Amara et al., arXiv 2212.12965): in each row the entropies say which one counts more.

    With q and p the softmax of s/T and t/T and H the entropy,

        T**2 * (KL(p || q) * (favour if H(q) < H(p) else 1) + KL(q || p) * (1 if H(q) < H(p) else favour)):

    a student more sure than the teacher is spread by the forward divergence, one less sure is sharpened by the
    reverse. How much more is a setting here. The weights are constants to the gradient. The paper trains the teacher as
    well, from the same divergences; here the teacher stands, as a cache's does, and this is the student's part.

    Args:
        student: [..., class].
        teacher: [..., class]; no gradient flows into it.
        favour: weight of the divergence that counts more; the other's is 1.
        temperature: T > 0.

    Returns:
        Scalar: mean over all leading positions.

    Raises:
        UsageError: shapes differ, fewer than 2 classes, or temperature <= 0.
    """
    check_logits(student, teacher, temperature)
    log_q, log_p = ((z / temperature).log_softmax(-1) for z in wide(student, teacher))
    q, p, apart = log_q.exp(), log_p.exp(), log_p - log_q
    with torch.no_grad():
        surer = (q * log_q).sum(-1) > (p * log_p).sum(-1)
    forward, reverse = (p * apart).sum(-1), -(q * apart).sum(-1)
    loss = torch.where(surer, favour * forward + reverse, forward + favour * reverse)
    return loss.mean() * temperature**2


@dataclass(frozen=True, kw_only=True)
class BDKD(Loss):
    """Forward and reverse divergence together, balanced in each row by the entropies of student and teacher."""

    favour: float = option(
        2.0, "weight of the divergence that counts more, of the other's", least=0, most=LARGEST_FACTOR
    )

    def value(self, student: Logits, teacher: Logits, labels: Labels, top: Top | None) -> Float[Tensor, ""]:
        return bdkd(student, teacher, favour=self.favour, temperature=self.temperature)

    def logit_sensitivity(self, teacher: Logits, labels: Labels, top: Top) -> Tensor:
        # Of a uniform student: the forward divergence as KD, and the reverse alike in all classes.
        p = (teacher / self.temperature).softmax(-1)
        return (p + self.favour / p.shape[-1]) * self.temperature
