"""What the teacher said about one batch."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class TeacherBatch(NamedTuple):
    """What the teacher said about one batch: a named tuple, which other libraries move, pin and collate as they are.

    Attributes:
        logits: float32 [batch, class], reconstructed, up to a constant per row. Of rows of several cells, as images
            with masks have: [batch, height, width, class], and [batch, output, height, width, class] of several outputs
            of a network, up to a constant per cell.
        top: int64 [batch, ..., k], the exact top classes in rank order; of several teachers, those of `logits`.
        rows: int64 [batch], rows of the cache.
        view: the view that the images are; where they are of several, int64 [batch].
    """

    logits: Float[Tensor, "batch *grid class"]
    top: Int[Tensor, "batch *grid k"]
    rows: Int[Tensor, " batch"]
    view: int | Int[Tensor, " batch"]

    def to(self, device: str | torch.device, non_blocking: bool = False) -> "TeacherBatch":
        """The same with its tensors on a device; `view` stays as it is."""
        logits, top, rows = (one.to(device, non_blocking=non_blocking) for one in (self.logits, self.top, self.rows))
        return TeacherBatch(logits, top, rows, self.view)
