"""How right a network is about the classes of images: top-1, top-5, likelihood, calibration, and by class."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gdkd_cache.data.targets import Targets
from gdkd_cache.errors import ModelError
from gdkd_cache.models.trial import running
from gdkd_cache.training.evaluation import Evaluation, Measure

_BINS = 15
_TOP = 5


@dataclass(frozen=True, kw_only=True)
class ClassEvaluation(Evaluation):
    """What a network's logits say of images with labels.

    Attributes:
        accuracy: top-1 in [0, 1]; of equal logits the lower class id counts as the larger.
        top5_accuracy: in [0, 1]; 1 where there are at most five classes.
        calibration_error: the expected calibration error in [0, 1], of 15 bins of the largest probability p:
            sum over bins of |sum of (p - right)| / images (Guo et al., "On Calibration of Modern Neural Networks",
            2017).
        class_accuracies: top-1 of the images of each class; None for a class without images.
        class_rows: images of each class.
    """

    score_name: ClassVar[str] = "accuracy"
    class_titles: ClassVar[Mapping[str, str]] = {"rows": "images", "accuracy": "accuracy"}

    accuracy: float
    top5_accuracy: float
    calibration_error: float
    class_accuracies: tuple[float | None, ...]
    class_rows: tuple[int, ...]

    def __str__(self) -> str:
        return (
            f"accuracy {self.accuracy:.2%}, top-5 {self.top5_accuracy:.2%}, NLL {self.loss:.4f}, "
            f"ECE {self.calibration_error:.4f} on {self.num_rows} images"
        )

    def told(self) -> dict[str, float]:
        return {
            "accuracy": self.accuracy,
            "top5_accuracy": self.top5_accuracy,
            "eval_loss": self.loss,
            "calibration_error": self.calibration_error,
        }

    def by_class(self) -> dict[str, tuple[float | int | None, ...]]:
        return {"rows": self.class_rows, "accuracy": self.class_accuracies}


class ClassMeasure(Measure):
    """Takes the evaluation of images with labels.

    Sums of the labels among the first five classes and of the losses; of each bin of confidence, of confidence less
    hits; of each class, of hits; of each class, of images.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes: int) -> None:
        self._sizes = [2, _BINS, num_classes, num_classes]
        self.num_sums, self._num_classes = sum(self._sizes), num_classes

    def sums(self, model: nn.Module, images: Tensor, targets: Targets) -> Tensor:
        with running("the network"):
            logits = model(images).float()
        labels = targets.labels.to(logits.device)
        own = logits.gather(1, labels[:, None])
        lower = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
        before = ((logits > own) | ((logits == own) & lower)).sum(1)
        losses = F.cross_entropy(logits, labels, reduction="none")
        figures = torch.stack([before, losses, logits.softmax(1).amax(1)]).cpu().double()
        right, labels = (figures[0] == 0).double(), labels.cpu()
        confidence = figures[2]
        bins = (confidence * _BINS).ceil().long().sub(1).clamp(0, _BINS - 1)
        return torch.cat(
            [
                torch.stack([(figures[0] < _TOP).double().sum(), figures[1].sum()]),
                torch.bincount(bins, confidence - right, _BINS),
                torch.bincount(labels, right, self._num_classes),
                torch.bincount(labels, minlength=self._num_classes).double(),
            ]
        )

    def evaluation(self, sums: Tensor, name: str) -> ClassEvaluation:
        (in_top, loss), gaps, right, seen = (part.tolist() for part in sums.split(self._sizes))
        if not math.isfinite(loss):
            raise ModelError(f"on {name} the network's outputs, or their loss, are not finite (loss {loss})")
        num_rows = int(sum(seen))
        return ClassEvaluation(
            accuracy=sum(right) / num_rows,
            top5_accuracy=in_top / num_rows,
            loss=loss / num_rows,
            calibration_error=sum(map(abs, gaps)) / num_rows,
            num_rows=num_rows,
            class_accuracies=tuple(hits / rows if rows else None for hits, rows in zip(right, seen, strict=True)),
            class_rows=tuple(map(int, seen)),
        )
