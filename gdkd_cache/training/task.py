"""What a batch's loss is: the loop knows none, and a method that needs more is a task of its own (`methods/`)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gdkd_cache.cache.batch import TeacherBatch
from gdkd_cache.cache.signal import Signal
from gdkd_cache.errors import UsageError
from gdkd_cache.fields import check_fields
from gdkd_cache.limits import NO_LABEL
from gdkd_cache.losses.base import Loss
from gdkd_cache.training import gradients
from gdkd_cache.training.amounts import Course, parse_course
from gdkd_cache.training.options import TrainOptions

Kind = TypeVar("Kind", bound="Task")
_OF_DISTILLATION = (
    "skip_epochs", "distillation_weights", "temperatures", "agreeing_weight", "disagreeing_weight", "method",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Task:
    """Cross-entropy and, beside it, a distillation loss that begins late, ramps up, and changes over the epochs.

    In epoch e, from 1, with CE the mean over the rows that have a label, w(e) the weight and D(e) the distillation loss
    at the temperature of that epoch:

        e <= skip_epochs:  CE
        later:             ce_weight * CE + w(e) * min((e - skip_epochs) / warmup, 1) * D(e)

    as in the code of GDKD for transformers (github.com/ZaberKo/vit-gdkd, distillers/gdkd.py), but that the ramp counts
    its epochs from 1, as GDKD's for CIFAR-100 does: there it counts from 0.

    Where rows weigh otherwise by whether the student's first class is the teacher's, with n_a of n rows where it is,

        D(e) = agreeing_weight * n_a / n * D(e) of these rows + disagreeing_weight * (n - n_a) / n * D(e) of the others

    which, of a loss that is a mean over rows, weighs each row. KD^3 (Tang et al., ICCV 2023) chooses images of a
    shifted distribution by what student and teacher say together, beside parts that need the teacher's features; this
    is the part that a cache serves, with weights in place of a choice.

    Attributes:
        distillation: None trains with cross-entropy alone.
        ce_weight, distillation_weight: of the two.
        warmup: epochs of the ramp; 0 is none.
        skip_epochs: epochs before the distillation begins.
        distillation_weights: in place of `distillation_weight`.
        temperatures: in place of the loss's own.
        label_smoothing: of the cross-entropy: each label gives this part of it to all classes alike; in [0, 1].
        agreeing_weight, disagreeing_weight: of rows in the distillation loss.

    A method is a subclass: its settings are further fields, made by `option`, and it says what it changes of what
    follows here. What it puts into the network is trained, averaged, saved and resumed with the network's weights.
    """

    distillation: Loss | None
    ce_weight: float
    distillation_weight: float
    warmup: int
    skip_epochs: int = 0
    distillation_weights: Course | None = None
    temperatures: Course | None = None
    label_smoothing: float = 0.0
    agreeing_weight: float = 1.0
    disagreeing_weight: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def of(cls: type[Kind], options: TrainOptions, **own: Any) -> Kind:
        """The task of a training's options.

        Args:
            options: of the training.
            own: its own fields.

        Raises:
            UsageError: an unknown loss or setting; or settings of a distillation loss, and there is none.
        """
        cls.check(options)
        weights, temperatures = (
            None if text is None else parse_course(name, text)
            for name, text in (
                ("distillation_weights", options.distillation_weights),
                ("temperatures", options.temperatures),
            )
        )
        return cls(
            distillation=options.distillation,
            ce_weight=options.ce_weight,
            distillation_weight=options.distillation_weight,
            warmup=options.warmup,
            skip_epochs=options.skip_epochs,
            distillation_weights=weights,
            temperatures=temperatures,
            label_smoothing=options.label_smoothing,
            agreeing_weight=options.agreeing_weight,
            disagreeing_weight=options.disagreeing_weight,
            **own,
        )

    @classmethod
    def check(cls, options: TrainOptions) -> None:
        """Refuse options that do not go together.

        Raises:
            UsageError: it names them.
        """
        for name in _OF_DISTILLATION:
            usual = TrainOptions.__dataclass_fields__[name].default
            if options.distillation is None and getattr(options, name) != usual:
                raise UsageError(f"{name} is {getattr(options, name)}; it goes with a distillation loss")

    def named(self, network: str) -> str:
        """What a network is called, once it has what this puts into it: as for `build_model`."""
        return network

    def given(self: Kind, signal: Signal | None) -> Kind:
        """The same with what else a teacher left.

        Raises:
            UsageError: it needs a signal and there is none, or the reverse.
            MismatchError: the signal is none that it can use.
        """
        if signal is not None:
            raise UsageError("a signal is given, and nothing here needs it; leave --signal out")
        return self

    def fit(self, model: nn.Module, num_classes: int, images: Tensor, what: str) -> None:
        """Put into a network what the method needs; it draws from torch's random numbers, if any.

        Args:
            model: fresh or with the weights that it begins from, on its device.
            num_classes: of its logits.
            images: blank ones, float [batch, 3, height, width], that it takes.
            what: the network, for messages.

        Raises:
            ModelError: the network is not made for that.
        """

    def heads(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """The logits that learn from labels, and those that learn from the teacher, both [batch, class].

        Args:
            outputs: what the network gives while it trains: its logits, unless `fit` has it give more.
        """
        return outputs, outputs

    def distillation_in(self, epoch: int) -> Loss | None:
        """The distillation loss of an epoch, from 0."""
        if self.distillation is None or self.temperatures is None:
            return self.distillation
        return replace(self.distillation, temperature=self.temperatures.at(epoch + 1))

    def weight_in(self, epoch: int) -> float:
        """The weight of the distillation loss in an epoch, from 0: ramp included, 0 in those that are skipped."""
        done = epoch + 1 - self.skip_epochs
        weight = self.distillation_weight
        if self.distillation_weights is not None:
            weight = self.distillation_weights.at(epoch + 1)
        return weight * (min(done / self.warmup, 1.0) if self.warmup else 1.0) if done > 0 else 0.0

    def terms(self, outputs: Tensor, labels: Tensor, teacher: TeacherBatch | None, epoch: int) -> dict[str, Tensor]:
        """The loss of a batch, first, under `loss`, and what is told beside it: scalars by name.

        Those are the terms that it is made of, and under `agreement` the share of rows, in [0, 1], whose largest logit,
        of those that learn from the teacher, is that of its top class.

        Args:
            outputs: the student's, as for `heads`.
            labels: class ids or `NO_LABEL`, int64 [batch], or float32 [batch, class] of mixed images.
            teacher: what the teacher said of the batch; only a distillation loss needs it.
            epoch: from 0.
        """
        own, logits = self.heads(outputs.float())
        ce = self._labelled_ce(own, labels)
        loss = self.distillation_in(epoch)
        if loss is None:
            return {"loss": self.ce_weight * ce, "ce": ce}
        assert teacher is not None
        skipped = epoch < self.skip_epochs
        with torch.set_grad_enabled(torch.is_grad_enabled() and not skipped):
            distillation = self.distilled(loss, logits, teacher.logits, labels, teacher.top)
        total = ce if skipped else self.ce_weight * ce + self.weight_in(epoch) * distillation
        agrees = _agrees(logits, teacher.logits, teacher.top)
        return {"loss": total, "ce": ce, "distillation": distillation, "agreement": agrees.float().mean()}

    def distilled(self, loss: Loss, student: Tensor, teacher: Tensor, labels: Tensor, top: Tensor) -> Tensor:
        """A distillation loss of rows [row, class], those that agree and the others each with their weight."""
        weights = (self.agreeing_weight, self.disagreeing_weight)
        if weights == (1.0, 1.0):
            return loss(student, teacher, labels, top)
        agrees, total = _agrees(student, teacher, top), student[:0].sum()
        for weight, rows in zip(weights, (agrees, ~agrees), strict=True):
            if weight and rows.any():
                own = loss(student[rows], teacher[rows], labels[rows], top[rows])
                total = total + weight * rows.float().mean() * own
        return total

    def _labelled_ce(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean over the rows that have a label; 0 where none has."""
        if labels.is_floating_point():
            return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        ce = F.cross_entropy(logits, labels, ignore_index=NO_LABEL, label_smoothing=self.label_smoothing)
        return ce.where((labels != NO_LABEL).any(), 0.0)

    def look(self, outputs: Tensor, teacher: TeacherBatch | None, epoch: int) -> Tensor | None:
        """What is kept of the gradients of a batch, a vector that can be added up; None without a teacher.

        Args:
            outputs, teacher, epoch: as for `terms`.
        """
        loss = self.distillation_in(epoch)
        return None if loss is None or teacher is None else gradients.look(self.heads(outputs)[1], teacher, loss)

    def told(self, totals: Mapping[str, Any], epoch: int, num_classes: int) -> dict[str, Any]:
        """What the metrics say of an epoch, from 0, beside the means of the terms, from all ranks' totals."""
        loss = self.distillation_in(epoch)
        return {} if loss is None else gradients.told(totals.get("gradients", ()), loss, num_classes)


@torch.no_grad()
def _agrees(student: Tensor, teacher: Tensor, top: Tensor) -> Tensor:
    """Of which rows the student's first class is the teacher's: bool [row]."""
    return student.argmax(-1) == (top[:, 0] if top.shape[1] else teacher.argmax(-1))
