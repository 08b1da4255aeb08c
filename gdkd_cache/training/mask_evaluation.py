"""How right a dense network is about the pixels of images: mean IoU, by class, pixel accuracy, likelihood."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gdkd_cache.data.masks import IGNORE
from gdkd_cache.data.targets import MaskTargets, Targets
from gdkd_cache.errors import ModelError, SourceError
from gdkd_cache.models.cells import MAIN, named_outputs, upsampled
from gdkd_cache.models.trial import running
from gdkd_cache.training.evaluation import Evaluation, Measure


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Windows over an image, of which the last of each row and column ends with the image.

    Attributes:
        height, width: of a window, cut to the image where that is smaller.
        down, across: pixels from one to the next.
    """

    height: int
    width: int
    down: int
    across: int

    def boxes(self, height: int, width: int) -> Iterator[tuple[slice, slice]]:
        """Those of an image of a size: rows, columns."""
        for top in _starts(height, self.height, self.down):
            for left in _starts(width, self.width, self.across):
                yield slice(top, min(top + self.height, height)), slice(left, min(left + self.width, width))


def _starts(length: int, window: int, step: int) -> list[int]:
    last = max(length - window, 0)
    return [*range(0, last, step), last]


@dataclass(frozen=True, kw_only=True)
class MaskEvaluation(Evaluation):
    """What a network's logits say of images with masks; pixels that a mask ignores count nowhere.

    Attributes:
        mean_iou: the mean of `class_ious`, in [0, 1], of the classes that have one.
        pixel_accuracy: of all pixels together, in [0, 1].
        num_pixels: that count.
        class_ious: of each class, intersection over union of its pixels and those that are said to be it, over all
            images together (Everingham et al., "The Pascal Visual Object Classes Challenge", 2015); None for a class
            that no pixel is, nor is said to be.
        class_pixels: of each class.
    """

    score_name: ClassVar[str] = "mean_iou"
    class_titles: ClassVar[Mapping[str, str]] = {"pixels": "pixels", "iou": "IoU"}

    mean_iou: float
    pixel_accuracy: float
    num_pixels: int
    class_ious: tuple[float | None, ...]
    class_pixels: tuple[int, ...]

    def __str__(self) -> str:
        return (
            f"mean IoU {self.mean_iou:.2%}, pixel accuracy {self.pixel_accuracy:.2%}, NLL {self.loss:.4f} "
            f"on {self.num_rows} images"
        )

    def told(self) -> dict[str, float]:
        return {"mean_iou": self.mean_iou, "pixel_accuracy": self.pixel_accuracy, "eval_loss": self.loss}

    def by_class(self) -> dict[str, tuple[float | int | None, ...]]:
        return {"pixels": self.class_pixels, "iou": self.class_ious}


class MaskMeasure(Measure):
    """Takes the evaluation of images with masks, one image at a time: they may differ in size.

    Sums of the images and of the losses; of each class, of the pixels that are it and are said to be, of those that
    are it, and of those that are said to be it: what the confusion matrix says of IoUs, in the memory of one row.

    Args:
        num_classes: C.
        windows: None for whole images.
    """

    most_images = 1

    def __init__(self, num_classes: int, windows: Windows | None = None) -> None:
        self._sizes = [2, num_classes, num_classes, num_classes]
        self.num_sums, self._num_classes, self._windows = sum(self._sizes), num_classes, windows

    def sums(self, model: nn.Module, images: Tensor, targets: Targets) -> Tensor:
        assert isinstance(targets, MaskTargets)
        masks = targets.masks.to(images.device).long()
        logits = pixel_logits(model, images, self._windows)
        counts = masks != IGNORE
        labels, said = masks[counts], logits.argmax(1)[counts]
        loss = F.cross_entropy(logits, masks, ignore_index=IGNORE, reduction="sum")
        classes = [torch.bincount(ids, minlength=self._num_classes) for ids in (labels[labels == said], labels, said)]
        images_and_loss = torch.stack([loss.new_tensor(len(images), dtype=torch.float64), loss.double()])
        return torch.cat([images_and_loss, *(one.double() for one in classes)]).cpu()

    def evaluation(self, sums: Tensor, name: str) -> MaskEvaluation:
        (num_rows, loss), right, there, said = (part.tolist() for part in sums.split(self._sizes))
        if not math.isfinite(loss):
            raise ModelError(f"on {name} the network's outputs, or their loss, are not finite (loss {loss})")
        num_pixels = int(sum(there))
        if not num_pixels:
            raise SourceError(f"no mask of {name} has a pixel of a class: all are ignored")
        unions = [own + other - both for both, own, other in zip(right, there, said, strict=True)]
        ious = tuple(both / union if union else None for both, union in zip(right, unions, strict=True))
        known = [iou for iou in ious if iou is not None]
        return MaskEvaluation(
            mean_iou=sum(known) / len(known),
            pixel_accuracy=sum(right) / num_pixels,
            loss=loss / num_pixels,
            num_rows=int(num_rows),
            num_pixels=num_pixels,
            class_ious=ious,
            class_pixels=tuple(map(int, there)),
        )


def pixel_logits(
    model: nn.Module, images: Float[Tensor, "batch 3 height width"], windows: Windows | None = None
) -> Float[Tensor, "batch class height width"]:
    """A dense network's main logits of every pixel, float32: its cells resized bilinearly.

    Where windows overlap, each pixel has the mean of their logits (not of their probabilities), as in the published
    code of PSPNet's and DeepLab's followers (CCNet's `predict_sliding`, mmsegmentation's `slide_inference`).

    Raises:
        ModelError: it fails, or is not dense.
    """
    height, width = images.shape[2:]
    if windows is None:
        return upsampled(_cells(model, images), (height, width))
    total, count = None, images.new_zeros(height, width)
    for rows, columns in windows.boxes(height, width):
        part = images[:, :, rows, columns]
        logits = upsampled(_cells(model, part), (part.shape[2], part.shape[3]))
        if total is None:
            total = logits.new_zeros(*logits.shape[:2], height, width)
        total[:, :, rows, columns] += logits
        count[rows, columns] += 1
    assert total is not None
    return total / count


def _cells(model: nn.Module, images: Tensor) -> Tensor:
    with running("the network"):
        outputs = model(images)
    return named_outputs(outputs)[MAIN].float()
