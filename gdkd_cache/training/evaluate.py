"""Top-1 accuracy of a network on a source, without augmentation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gdkd_cache.data.images.memory import decoded_once
from gdkd_cache.data.loader import ViewLoader, default_num_workers
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.source import Source, settle
from gdkd_cache.data.views import ViewRenderer, ViewRequest, image_size, requests_for
from gdkd_cache.errors import ModelError
from gdkd_cache.models.normalization import normalize_pixels
from gdkd_cache.models.trial import running
from gdkd_cache.training.distributed import rank_and_size, sum_over_ranks


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Attributes: accuracy: top-1 in [0, 1]; loss: mean cross-entropy; num_rows: images seen."""

    accuracy: float
    loss: float
    num_rows: int


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
        SourceError: the source is not right.
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
        self._name = source.name

    @torch.inference_mode()
    def __call__(self, model: nn.Module) -> Evaluation:
        """Evaluate; the network is left in the mode that it was in.

        Raises:
            SourceError: an image cannot be decoded, or its size is not the others'.
            ModelError: the loss is not finite.
        """
        was_training = model.training
        model.eval()
        sums = torch.zeros(3, dtype=torch.float64)
        for batch in self._loader.stream(self._requests):
            labels = batch.targets.labels.to(self._device)
            with running("the network"):
                logits = model(normalize_pixels(batch.pixels.to(self._device), self._mean, self._std)).float()
            correct = float((logits.argmax(-1) == labels).sum())
            loss = float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
            sums += torch.tensor([correct, loss, len(labels)])
        model.train(was_training)
        correct, loss, seen = sum_over_ranks(sums.to(self._device)).tolist()
        if not math.isfinite(loss):
            raise ModelError(f"on {self._name} the network's outputs, or their loss, are not finite (loss {loss})")
        return Evaluation(accuracy=correct / seen, loss=loss / seen, num_rows=int(seen))
