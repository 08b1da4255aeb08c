"""ND: the norm and direction of features (arXiv 2305.17007), beside any distillation loss."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gdkd_cache.cache.batch import TeacherBatch
from gdkd_cache.cache.signal import FEATURES, NORMS, Signal
from gdkd_cache.errors import MismatchError, UsageError
from gdkd_cache.fields import option
from gdkd_cache.limits import LARGEST_FACTOR, NO_LABEL
from gdkd_cache.models.heads import Adapter, Featured, last_linear, put
from gdkd_cache.training.task import Task


def norm_direction(
    features: Float[Tensor, "batch feature"],
    labels: Int[Tensor, " batch"],
    centres: Float[Tensor, "class feature"],
    norms: Float[Tensor, " class"],
) -> Float[Tensor, ""]:
    """The mean over labelled rows of 1 - <f, e_y> / max(||f||, n_y), with e_y = c_y / ||c_y||; 0 without a label.

    It falls as a row's features f turn towards its class's centre, and as their norm grows to the teacher's (Wang et
    al., arXiv 2305.17007; `DirectNormLoss` in github.com/WangYZ1608/Knowledge-Distillation-via-ND, CIFAR/utils.py at
    3b2ff1b). There n is the norm of the teacher's features of the row itself, here their mean norm over the class: the
    teacher is not there to be asked.

    Args:
        features: of the student.
        labels: class ids or `NO_LABEL`.
        centres: c, the mean of the teacher's features of each class.
        norms: n, the mean of their norms.
    """
    known = labels != NO_LABEL
    own = labels.clip(0)
    directions = nn.functional.normalize(centres, dim=1)[own]
    largest = torch.maximum(features.norm(dim=1), norms[own])
    losses = 1 - (features * directions).sum(1) / largest
    return losses.where(known, 0.0).sum() / known.sum().clip(1)


@dataclass(frozen=True, kw_only=True)
class ND(Task):
    """Features of the teacher's norm and direction: beside the loss, weight * mean(1 - <f, e_y> / max(||f||, n_y)).

    f are what the student's last linear layer reads; where the teacher has another number of them, a BatchNorm, dropout
    and a linear layer come between while it trains, as published. See `norm_direction`; the teacher's class means are a
    signal of `gdkd-cache signal`.
    """

    weight: float = option(1.0, "of the norm and direction", least=0, most=LARGEST_FACTOR)
    dropout: float = option(0.5, "between features of another number", least=0, most=1)
    signal: Signal | None = None

    def given(self, signal: Signal | None) -> "ND":
        if signal is None:
            raise UsageError(
                "method nd needs the class means of the teacher's features: make them with gdkd-cache signal"
            )
        shapes = {name: list(value.shape) for name, value in signal.arrays.items()}
        if signal.per != "class" or shapes.keys() != {FEATURES, NORMS} or len(shapes[FEATURES]) != 2:
            raise MismatchError(
                f"the signal has {shapes} of each {signal.per}; method nd needs one of gdkd-cache signal"
            )
        return replace(self, signal=signal)

    def fit(self, model: nn.Module, num_classes: int, images: Tensor, what: str) -> None:
        assert self.signal is not None
        name, layer = last_linear(model, num_classes, what)
        here, there = layer.in_features, self.signal.arrays[FEATURES].shape[1]
        between = [] if here == there else [nn.BatchNorm1d(here), nn.Dropout(self.dropout), nn.Linear(here, there)]
        put(model, name, Featured(layer, Adapter(*between).to(images.device)), images, what)

    def _parts(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        assert self.signal is not None
        width = self.signal.arrays[FEATURES].shape[1]
        return outputs[:, :-width], outputs[:, -width:]

    def heads(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        logits, _ = self._parts(outputs)
        return logits, logits

    def terms(self, outputs: Tensor, labels: Tensor, teacher: TeacherBatch | None, epoch: int) -> dict[str, Tensor]:
        terms = super().terms(outputs, labels, teacher, epoch)
        assert self.signal is not None
        centres, norms = (self.signal.arrays[name].to(outputs.device).float() for name in (FEATURES, NORMS))
        _, features = self._parts(outputs.float())
        nd = norm_direction(features, labels, centres, norms)
        return {**terms, "loss": terms["loss"] + self.weight * nd, "nd": nd}
