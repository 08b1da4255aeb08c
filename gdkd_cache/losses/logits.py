"""What all losses ask of a student's and a teacher's logits before they begin."""

import torch
from torch import Tensor

from gdkd_cache.errors import UsageError


def check_logits(student: Tensor, teacher: Tensor, temperature: float) -> None:
    """Validate a student/teacher pair.

    Raises:
        UsageError: shapes differ, there are fewer than 2 classes, or temperature <= 0.
    """
    if student.shape != teacher.shape or student.ndim < 1:
        raise UsageError(
            f"student logits are {list(student.shape)}, teacher logits {list(teacher.shape)}; "
            "both must be [..., class] of one shape"
        )
    if student.shape[-1] < 2:
        raise UsageError(f"logits have {student.shape[-1]} classes; distillation needs at least 2")
    if not 0 < temperature < float("inf"):
        raise UsageError(f"temperature is {temperature}; it must be above 0 and finite")


def wide(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32 or wider; no gradient flows into the teacher's."""
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return student.to(dtype), teacher.detach().to(dtype)


def rows_of(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """As `wide`, all leading positions in one: [row, class], for losses that look at rows together."""
    s, t = wide(student, teacher)
    return s.reshape(-1, s.shape[-1]), t.reshape(-1, t.shape[-1])
