"""What a batch's loss is where the targets are masks: cross-entropy at the images' size, distillation cell by cell."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from gdkd_cache.cache.batch import TeacherBatch
from gdkd_cache.data.masks import IGNORE, cell_labels
from gdkd_cache.losses.base import Loss
from gdkd_cache.models.cells import MAIN, named_outputs, upsampled
from gdkd_cache.training import gradients
from gdkd_cache.training.options import TrainOptions
from gdkd_cache.training.task import Task

Kind = TypeVar("Kind", bound="MaskTask")


@dataclass(frozen=True, kw_only=True)
class MaskTask(Task):
    """Cross-entropy of every pixel and, beside it, a distillation loss of every cell of the teacher's grid.

    With the student's outputs o, its weights a_o (1 of the main one, `aux_weight` of others) and the ramped weight w(e)
    of the epoch, as in the code of GDKD for segmentation (github.com/ZaberKo/seg-gdkd, train_kd.py):

        ce_weight * sum_o a_o CE_o + w(e) * sum_o a_o D_o

    CE_o is the mean over pixels of the output's logits, resized bilinearly to the mask; D_o the mean over cells against
    the teacher's output of that name, whose grid the logits are resized to. Pixels that the mask ignores count nowhere,
    nor does a cell at whose centre one is: there the published code takes the mean over all cells.

    Attributes:
        aux_weight: a_o of all outputs but the main one.
        outputs: the teacher's, in the order of its logits; empty for one.
    """

    aux_weight: float = 0.4
    outputs: tuple[str, ...] = ()

    @classmethod
    def of(cls: type[Kind], options: TrainOptions, **own: Any) -> Kind:
        return super().of(options, aux_weight=options.aux_weight, **own)  # pyright: ignore[reportReturnType]

    def _weight(self, name: str) -> float:
        return 1.0 if name == MAIN else self.aux_weight

    def terms(self, outputs: Any, labels: Tensor, teacher: TeacherBatch | None, epoch: int) -> dict[str, Tensor]:
        """As `Task.terms`.

        Args:
            outputs: of the student, a tensor [batch, class, height, width] or several by name.
            labels: masks, int64 [batch, height, width].
            teacher: logits [batch, *grid, class]; only a distillation loss needs it.
            epoch: from 0.
        """
        given = {name: output.float() for name, output in named_outputs(outputs).items()}
        ce = torch.stack([self._weight(name) * self._cross_entropy(own, labels) for name, own in given.items()]).sum()
        loss = self.distillation_in(epoch)
        if loss is None:
            return {"loss": self.ce_weight * ce, "ce": ce}
        assert teacher is not None
        skipped = epoch < self.skip_epochs
        with torch.set_grad_enabled(torch.is_grad_enabled() and not skipped):
            parts = self._cells(given, labels, teacher)
            distillation = torch.stack(
                [self._weight(name) * self._over_cells(loss, *part) for name, part in parts.items()]
            ).sum()
        total = ce if skipped else self.ce_weight * ce + self.weight_in(epoch) * distillation
        student, _, _, top = parts[MAIN]
        agreement = (student.detach().argmax(-1) == top[:, 0]).float().sum() / max(len(top), 1)
        return {"loss": total, "ce": ce, "distillation": distillation, "agreement": agreement}

    def _cross_entropy(
        self, logits: Float[Tensor, "batch class y x"], masks: Int[Tensor, "batch height width"]
    ) -> Tensor:
        full = upsampled(logits, (masks.shape[1], masks.shape[2]))
        summed = F.cross_entropy(
            full, masks, ignore_index=IGNORE, label_smoothing=self.label_smoothing, reduction="sum"
        )
        return summed / (masks != IGNORE).sum().clamp(min=1)

    def _cells(
        self, outputs: Mapping[str, Tensor], masks: Tensor, teacher: TeacherBatch
    ) -> dict[str, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """What both networks say of the cells that count, by output: student, teacher, labels, top, [cell, ...]."""
        height, width = teacher.logits.shape[-3:-1]
        labels = cell_labels(masks, (height, width))
        counts = labels != IGNORE
        parts: dict[str, tuple[Tensor, Tensor, Tensor, Tensor]] = {}
        for number, name in enumerate(self.outputs or (MAIN,)):
            if name in outputs:
                said, top = (one[:, number] if self.outputs else one for one in (teacher.logits, teacher.top))
                own = upsampled(outputs[name], (height, width)).movedim(1, -1)
                parts[name] = own[counts], said[counts], labels[counts], top[counts]
        return parts

    def _over_cells(self, loss: Loss, student: Tensor, teacher: Tensor, labels: Tensor, top: Tensor) -> Tensor:
        """The loss of cells [cell, class]; 0 where there is none, and gradients with it."""
        return self.distilled(loss, student, teacher, labels, top) if len(student) else student.sum()

    def look(self, outputs: Any, teacher: TeacherBatch | None, epoch: int) -> Tensor | None:
        loss = self.distillation_in(epoch)
        if loss is None or teacher is None:
            return None
        said, top = (one[:, 0] if self.outputs else one for one in (teacher.logits, teacher.top))
        own = upsampled(named_outputs(outputs)[MAIN], (said.shape[1], said.shape[2])).movedim(1, -1)
        cells = TeacherBatch(said.flatten(0, -2), top.flatten(0, -2), teacher.rows, teacher.view)
        return gradients.look(own.flatten(0, -2), cells, loss)
