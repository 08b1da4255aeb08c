"""A network evaluated on a source, without augmentation: on the classes of its images, or on their masks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gdkd_cache.data.images.memory import decoded_once
from gdkd_cache.data.loader import ViewLoader, default_num_workers
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.source import Source, settle
from gdkd_cache.data.views import ViewRenderer, ViewRequest, image_size, requests_for
from gdkd_cache.models.normalization import normalize_pixels
from gdkd_cache.training.class_evaluation import ClassMeasure
from gdkd_cache.training.distributed import rank_and_size, sum_over_ranks
from gdkd_cache.training.evaluation import Evaluation, Measure
from gdkd_cache.training.mask_evaluation import MaskMeasure, Windows


class Evaluator:
    """Evaluates networks on one source, of which each rank sees a part; its loader is kept between calls.

    Args:
        source: the images, all of one size; those with masks may differ.
        mean, std: channel statistics that the network's inputs are normalised with.
        device: where to compute.
        batch_size: images a batch; with masks each is one of its own.
        num_workers: processes that decode; None is 0 for images in memory, else one a core.
        images_in_memory: bytes of memory for decoded images; see `in_memory`.
        decoded: a folder that keeps the pixels of others; see `in_file`.
        recipe: what makes the network's inputs, without augmentation; of masks too.
        windows: of images with masks; None for whole ones.

    Attributes:
        size: height and width of the network's inputs, of the first image.
        dense: whether the images have masks.

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
        windows: Windows | None = None,
    ) -> None:
        source = settle(source)
        source.require_labels()
        opened = open_recipe(recipe, *image_size(source))
        source = decoded_once(source, opened, images_in_memory, decoded, num_workers=num_workers)
        renderer = ViewRenderer(source, opened, seed=0, device=device)
        if num_workers is None:
            num_workers = default_num_workers(source)
        self._loader = ViewLoader(renderer, num_workers=num_workers, pin_memory=device.type == "cuda")
        num_classes, self.dense = len(source.classes), source.has_masks
        self._measure: Measure = MaskMeasure(num_classes, windows) if self.dense else ClassMeasure(num_classes)
        rank, world_size = rank_and_size()
        rows = np.arange(rank, len(source), world_size)
        self._requests = requests_for(0, rows, min(batch_size, self._measure.most_images or batch_size))
        shape = renderer[ViewRequest((0,), np.arange(1))][0].pixels.shape
        self.size = (shape[2], shape[3])
        self._mean, self._std, self._device, self._name = mean, std, device, source.name

    @torch.inference_mode()
    def __call__(self, model: nn.Module) -> Evaluation:
        """Evaluate; the network is left in the mode that it was in.

        Raises:
            SourceError: an image or a mask cannot be decoded, an image's size is not the others', or nothing counts.
            ModelError: the network fails, or the loss is not finite.
        """
        was_training = model.training
        model.eval()
        sums = torch.zeros(self._measure.num_sums, dtype=torch.float64)
        for batch in self._loader.stream(self._requests):
            images = normalize_pixels(batch.pixels.to(self._device), self._mean, self._std)
            sums += self._measure.sums(model, images, batch.targets)
        model.train(was_training)
        return self._measure.evaluation(sum_over_ranks(sums.to(self._device)), self._name)
