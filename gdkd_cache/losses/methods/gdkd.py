"""GDKD: generalized decoupled knowledge distillation (arXiv 2512.04625)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from gdkd_cache.fields import option
from gdkd_cache.limits import LARGEST_FACTOR
from gdkd_cache.losses.base import Labels, Logits, Loss, Top
from gdkd_cache.losses.partition import KL_KINDS, partition_loss, ranked_groups, within_groups


def gdkd(
    student: Float[Tensor, "*batch class"],
    teacher: Float[Tensor, "*batch class"],
    *,
    k: int = 5,
    w0: float = 1.0,
    w1: float = 1.0,
    w2: float = 8.0,
    temperature: float = 4.0,
    kl: str = "forward",
    top: Int[Tensor, "*batch rank"] | None = None,
) -> Float[Tensor, ""]:
    """Generalized decoupled knowledge distillation (arXiv 2512.04625): the teacher's top-k and the rest.

    T**2 * (w0 KL(b_t || b_s) + w1 KL_top + w2 KL_rest), b the masses of the two groups.

    Args:
        student: [..., class].
        teacher: [..., class]; no gradient flows into it.
        k: size of the top group, 1 <= k < class.
        w0: weight of the binary top level.
        w1: weight inside the top group.
        w2: weight inside the rest.
        temperature: T > 0.
        kl: `forward`, `reverse` or `both`, inside the groups.
        top: int64 [..., >= k], the exact teacher partition in rank order (`teacher.top` of a cache);
            without it the partition is the teacher argument's top-k, equal logits by ascending class id.

    Returns:
        Scalar: mean over all leading positions.

    Raises:
        UsageError: shapes differ, k, temperature or kl out of range.
    """
    group = ranked_groups(teacher, top, [k])
    return partition_loss(
        student, teacher, group, top_weight=w0, group_weights=[w1, w2], temperature=temperature, kl=kl
    )


@dataclass(frozen=True, kw_only=True)
class GDKD(Loss):
    """Generalized decoupled knowledge distillation: the teacher's top k classes against the rest, and inside each."""

    needs_tail: ClassVar[bool] = False

    k: int = option(5, "size of the top group", least=1)
    w0: float = option(1.0, "weight of the top level: the groups' masses", least=0, most=LARGEST_FACTOR)
    w1: float = option(1.0, "weight inside the top group", least=0, most=LARGEST_FACTOR)
    w2: float = option(8.0, "weight inside the rest", least=0, most=LARGEST_FACTOR)
    kl: str = option("forward", "divergence inside the groups", choices=KL_KINDS)

    @property
    def num_top(self) -> int:
        return self.k

    def _settings(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "standardize"}

    def value(self, student: Logits, teacher: Logits, labels: Labels, top: Top | None) -> Float[Tensor, ""]:
        return gdkd(student, teacher, **self._settings(), top=top)

    def logit_sensitivity(self, teacher: Logits, labels: Labels, top: Top) -> Tensor:
        group = ranked_groups(teacher, top, [self.k])
        return within_groups(teacher, group, group_weights=[self.w1, self.w2], temperature=self.temperature)
