"""GDKD3: GDKD with three groups (arXiv 2512.04625)."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from gdkd_cache.errors import UsageError
from gdkd_cache.fields import option
from gdkd_cache.losses.base import Labels, Logits, Top
from gdkd_cache.losses.methods.gdkd import GDKD
from gdkd_cache.losses.partition import partition_loss, ranked_groups, within_groups


def gdkd3(
    student: Float[Tensor, "*batch class"],
    teacher: Float[Tensor, "*batch class"],
    *,
    k: int = 4,
    w0: float = 1.0,
    w1: float = 1.0,
    w2: float = 8.0,
    temperature: float = 4.0,
    kl: str = "forward",
    top: Int[Tensor, "*batch rank"] | None = None,
) -> Float[Tensor, ""]:
    """GDKD with three groups (arXiv 2512.04625): the teacher's top-1, its ranks 2..k, and the rest.

    Arguments and errors as `gdkd`, with 2 <= k < class; w1 weighs ranks 2..k, w2 the rest.
    """
    if k < 2:
        raise UsageError(f"k is {k}; gdkd3 needs k of at least 2: its groups are {{1}}, {{2..k}} and the rest")
    group = ranked_groups(teacher, top, [1, k - 1])
    return partition_loss(
        student, teacher, group, top_weight=w0, group_weights=[0.0, w1, w2], temperature=temperature, kl=kl
    )


@dataclass(frozen=True, kw_only=True)
class GDKD3(GDKD):
    """GDKD with three groups: the teacher's top class, its ranks 2 to k, and the rest."""

    k: int = option(4, "size of the first two groups together", least=2)

    def value(self, student: Logits, teacher: Logits, labels: Labels, top: Top | None) -> Float[Tensor, ""]:
        return gdkd3(student, teacher, **self._settings(), top=top)

    def logit_sensitivity(self, teacher: Logits, labels: Labels, top: Top) -> Tensor:
        group = ranked_groups(teacher, top, [1, self.k - 1])
        return within_groups(teacher, group, group_weights=[0.0, self.w1, self.w2], temperature=self.temperature)
