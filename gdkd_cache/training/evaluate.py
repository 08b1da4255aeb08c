"""How right a network is on a source, without augmentation: top-1, top-5, likelihood, calibration, and by class."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gdkd_cache.data.images.memory import decoded_once
from gdkd_cache.data.loader import ViewLoader, default_num_workers
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.source import Source, settle
from gdkd_cache.data.views import ViewRenderer, ViewRequest, image_size, requests_for
from gdkd_cache.errors import ModelError
from gdkd_cache.models.normalization import normalize_pixels
from gdkd_cache.models.trial import running
from gdkd_cache.training.distributed import rank_and_size, sum_over_ranks

_BINS = 15
_TOP = 5


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a network's logits say of images with labels.

    Attributes:
        accuracy: top-1 in [0, 1]; of equal logits the lower class id counts as the larger.
        top5_accuracy: in [0, 1]; 1 where there are at most five classes.
        loss: the mean negative log-likelihood of the labels (cross-entropy), in nats.
        calibration_error: the expected calibration error in [0, 1], of 15 bins of the largest probability p:
            sum over bins of |sum of (p - right)| / images (Guo et al., "On Calibration of Modern Neural Networks",
            2017).
        num_rows: images seen.
        class_accuracies: top-1 of the images of each class; None for a class without images.
    """

    accuracy: float
    top5_accuracy: float
    loss: float
    calibration_error: float
    num_rows: int
    class_accuracies: tuple[float | None, ...]


class Evaluator:
    """Evaluates networks on one source, of which each rank sees a part; its loader is kept between calls.

    Args:
        source: the images, all of one size.
        mean, std: channel statistics that the network's inputs are normalised with.
        device: where to compute.
        batch_size: images a batch.
        num_workers: processes that decode; None is 0 for images in memory, else one a core.
        images_in_memory: bytes of memory for decoded images; see `in_memory`.
        decoded: a folder that keeps the pixels of others; see `in_file`.
        recipe: what makes the network's inputs, without augmentation.

    Attributes:
        size: height and width of the network's inputs.

    Raises:
        UsageError: an unknown recipe.
        SourceError: the source is not right, or some of its rows have no label.
    """

    def __init__(
        self,
        source: Source,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        batch_size: int = 512,
        num_workers: int | None = 0,
        images_in_memory: int | None = None,
        decoded: Path | None = None,
        recipe: str = "none",
    ) -> None:
        source = settle(source)
        source.require_labels()
        opened = open_recipe(recipe, *image_size(source))
        source = decoded_once(source, opened, images_in_memory, decoded, num_workers=num_workers)
        renderer = ViewRenderer(source, opened, seed=0, device=device)
        if num_workers is None:
            num_workers = default_num_workers(source)
        self._loader = ViewLoader(renderer, num_workers=num_workers, pin_memory=device.type == "cuda")
        rank, world_size = rank_and_size()
        self._requests = requests_for(0, np.arange(rank, len(source), world_size), batch_size)
        shape = renderer[ViewRequest((0,), np.arange(1))][0].pixels.shape
        self.size = (shape[2], shape[3])
        self._mean, self._std, self._device = mean, std, device
        self._name, self._num_classes = source.name, len(source.classes)

    @torch.inference_mode()
    def __call__(self, model: nn.Module) -> Evaluation:
        """Evaluate; the network is left in the mode that it was in.

        Raises:
            SourceError: an image cannot be decoded, or its size is not the others'.
            ModelError: the loss is not finite.
        """
        was_training = model.training
        model.eval()
        sums = torch.zeros(2 + _BINS + 2 * self._num_classes, dtype=torch.float64)
        for batch in self._loader.stream(self._requests):
            labels = batch.targets.labels.to(self._device)
            with running("the network"):
                logits = model(normalize_pixels(batch.pixels.to(self._device), self._mean, self._std)).float()
            sums += _sums(logits, labels, self._num_classes)
        model.train(was_training)
        (in_top, loss), gaps, right, seen = (
            part.tolist()
            for part in sum_over_ranks(sums.to(self._device)).split([2, _BINS, self._num_classes, self._num_classes])
        )
        if not math.isfinite(loss):
            raise ModelError(f"on {self._name} the network's outputs, or their loss, are not finite (loss {loss})")
        num_rows = int(sum(seen))
        return Evaluation(
            accuracy=sum(right) / num_rows,
            top5_accuracy=in_top / num_rows,
            loss=loss / num_rows,
            calibration_error=sum(map(abs, gaps)) / num_rows,
            num_rows=num_rows,
            class_accuracies=tuple(hits / rows if rows else None for hits, rows in zip(right, seen, strict=True)),
        )


def _sums(logits: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """What a batch adds to the sums, in one vector, so that ranks add theirs at once: float64 on the CPU.

    The number of labels among the first five classes and the sum of the losses; of each bin of confidence, the sum of
    confidence less hits; of each class, hits; of each class, images.

    Args:
        logits: float32 [batch, class].
        labels: int64 [batch].
    """
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
            torch.bincount(labels, right, num_classes),
            torch.bincount(labels, minlength=num_classes).double(),
        ]
    )
