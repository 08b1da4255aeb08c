"""Which view of an image is shown next: that on which student and teacher disagreed most when it was last shown."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gdkd_cache.cache.batch import TeacherBatch


class Disagreement:
    """What student and teacher have disagreed by, view by view, and the views that an epoch shows for it.

    Hard augmentations for distillation (HARD, Nix et al., arXiv 2305.14890) searches, with a live teacher, for
    augmentations on which both disagree; here the views of the cache are what can be chosen from.

    Attributes:
        view_numbers: the views, in turn.
        table: KL(teacher || student) at T = 1, in nats, as it was when the image was last shown so: float32
            [view, row], in the CPU's memory; 0 before.
    """

    def __init__(self, view_numbers: Sequence[int], num_rows: int) -> None:
        self.view_numbers = np.array(view_numbers)
        self.table = torch.zeros(len(view_numbers), num_rows)

    def see(self, logits: Float[Tensor, "batch class"], said: TeacherBatch, rows: np.ndarray) -> None:
        """Take note of a batch.

        Args:
            logits: the student's, those that learn from the teacher.
            said: what the teacher said of it.
            rows: int64 [batch], rows of the source.
        """
        found = divergence(logits, said.logits).nan_to_num(nan=torch.inf).cpu()
        numbers = np.broadcast_to(np.asarray(said.view), len(rows))
        positions = np.argmax(numbers[:, None] == self.view_numbers, 1)
        self.table[torch.from_numpy(positions), torch.from_numpy(rows)] = found

    def chooses(self, epoch: int) -> bool:
        """Whether it chooses the views of an epoch, from 0: not in the first round, when each has its turn."""
        return epoch >= len(self.view_numbers)

    def row_views(self, epoch: int) -> np.ndarray | None:
        """The view of each row in an epoch, from 0: int64 [row]; None where a view has its turn.

        It is a function of the table as the epoch begins. In its midst rows that were shown have other values, and each
        row is shown once: what is left of it does not change.
        """
        return self.view_numbers[self.table.argmax(0).numpy()] if self.chooses(epoch) else None


@torch.no_grad()
def divergence(student: Float[Tensor, "batch class"], teacher: Float[Tensor, "batch class"]) -> Float[Tensor, " batch"]:
    """KL(teacher || student) of each row at T = 1, in nats."""
    ours, theirs = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    return (theirs.exp() * (theirs - ours)).sum(-1)
