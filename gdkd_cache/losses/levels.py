"""What each level of a two-level KL does to the logits outside the teacher's top classes (GDKD's Fig. 3).

With the groups {top} and {rest}, c and b the masses of the rest of student and teacher, q and p their probabilities
inside the rest, KD's gradient by the student's logit i of the rest is the sum of the two levels', the second one
weighted with b = 1 - p_top:

    T (c q_i - b p_i) = T (c - b) q_i + b T (q_i - p_i)

GDKD takes that weight away: what it teaches about the rest is 1 / (1 - p_top) times as strong.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

NAMES = ("top_level", "other", "kd")
_LARGEST_LOG = 60.0  # of whose power many fit into float32


class Levels(NamedTuple):
    """Gradients by the student's logits, of one row each: not divided by a batch, all weights 1, times T**2.

    Attributes:
        top_level: of level 0, the groups' masses, float32 [row, class]; 0 for the top classes here and below.
        other: of level 1 inside the rest.
        kd: of plain knowledge distillation.
        factor: 1 / (1 - p_top), float32 [row]: by how much `other` exceeds its part in `kd`.
    """

    top_level: Float[Tensor, "row class"]
    other: Float[Tensor, "row class"]
    kd: Float[Tensor, "row class"]
    factor: Float[Tensor, " row"]


@torch.no_grad()
def level_gradients(
    student: Float[Tensor, "row class"],
    teacher: Float[Tensor, "row class"],
    top: Int[Tensor, "row k"],
    temperature: float,
) -> Levels:
    """The gradients of both levels, and of both together as in KD, outside the top classes.

    Args:
        student, teacher: logits.
        top: int64 [row, k], the top group, 1 <= k < class.
        temperature: T > 0.
    """
    both = torch.stack((student.float(), teacher.float())).div_(temperature).log_softmax(-1)
    both.scatter_(-1, top.expand(2, -1, -1), -torch.inf)
    masses = both.logsumexp(-1, keepdim=True)
    q, p = (both - masses).exp()
    c, b = masses.exp()
    factor = (-masses[1, :, 0]).clamp(max=_LARGEST_LOG).exp()
    return Levels((c - b) * q * temperature, (q - p) * temperature, (c * q - b * p) * temperature, factor)
