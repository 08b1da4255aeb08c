"""What a batch's loss is: the loop knows none, and a method that needs more brings a task of its own."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from gdkd_cache.cache.dataset import TeacherBatch
from gdkd_cache.losses.base import Loss
from gdkd_cache.training.options import TrainOptions


@dataclass(frozen=True, kw_only=True)
class Task:
    """Cross-entropy and, beside it, a distillation loss that ramps up.

    ce_weight * CE + distillation_weight * min(epoch / warmup, 1) * distillation, epochs from 1.

    Attributes:
        distillation: None trains with cross-entropy alone.
        ce_weight, distillation_weight: of the two.
        warmup: epochs of the ramp; 0 is none.
    """

    distillation: Loss | None
    ce_weight: float
    distillation_weight: float
    warmup: int

    @classmethod
    def of(cls, options: TrainOptions) -> "Task":
        """The task of a training's options."""
        return cls(
            distillation=options.distillation,
            ce_weight=options.ce_weight,
            distillation_weight=options.distillation_weight,
            warmup=options.warmup,
        )

    def terms(self, logits: Tensor, labels: Tensor, teacher: TeacherBatch | None, epoch: int) -> dict[str, Tensor]:
        """The loss of a batch, first, under `loss`, and the terms that it is made of: scalars by name.

        Args:
            logits: the student's, float32 [batch, class].
            labels: class ids int64 [batch], or float32 [batch, class] of mixed images.
            teacher: what the teacher said of the batch; only a distillation loss needs it.
            epoch: from 0.
        """
        ce = F.cross_entropy(logits, labels)
        if self.distillation is None:
            return {"loss": self.ce_weight * ce, "ce": ce}
        assert teacher is not None
        distillation = self.distillation(logits, teacher.logits, labels, teacher.top)
        ramp = min((epoch + 1) / self.warmup, 1.0) if self.warmup else 1.0
        total = self.ce_weight * ce + self.distillation_weight * ramp * distillation
        return {"loss": total, "ce": ce, "distillation": distillation}
