"""What the trainer iterates over: an epoch of images, labels, and what the teacher said or None.

Three makers with one signature in effect: from a cache, with a live teacher, and with no teacher at all.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from gdkd_cache.cache.batch import TeacherBatch
from gdkd_cache.cache.dataset import CachedDataset
from gdkd_cache.data.loader import ViewLoader
from gdkd_cache.data.order import Stretch, epoch_requests
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.source import FullSource
from gdkd_cache.data.views import ViewRenderer
from gdkd_cache.losses.partition import top_classes
from gdkd_cache.models.normalization import normalize_pixels
from gdkd_cache.training.disagreement import Disagreement


class Batch(NamedTuple):
    """One batch.

    Attributes:
        images: float32 [batch, channel, height, width], normalised.
        labels: int64 [batch], or float32 [batch, class] where the recipe mixes images.
        said: what the teacher said; None without one.
        rows: int64 [batch], rows of the source, in the CPU's memory.
    """

    images: Tensor
    labels: Tensor
    said: TeacherBatch | None
    rows: np.ndarray


@runtime_checkable
class Batches(Protocol):
    """Epochs of batches."""

    def __call__(self, epoch: int, done: Sequence[Stretch] = (), /) -> Iterator[Batch]:
        """This rank's batches of an epoch, those that are left after the stretches done, as for `epoch_requests`."""
        ...


def cached_batches(
    dataset: CachedDataset,
    disagreement: Disagreement | None = None,
    *,
    batch_size: int,
    seed: int,
    num_workers: int,
    device: torch.device,
) -> Batches:
    """Epochs from a cache, in the order that (seed, epoch) draws, of the views in turn or of those that are chosen."""
    source_rows = np.empty(dataset.cache_rows.max() + 1, np.int64)
    source_rows[dataset.cache_rows] = np.arange(len(dataset))

    def epoch_batches(epoch: int, done: Sequence[Stretch] = (), /) -> Iterator[Batch]:
        loader = dataset.loader(
            epoch,
            batch_size=batch_size,
            shuffle=True,
            seed=seed,
            num_workers=num_workers,
            device=device,
            done=done,
            row_views=None if disagreement is None else disagreement.row_views(epoch),
        )
        for images, labels, said in loader:
            yield Batch(images, labels, said, source_rows[said.rows.numpy()])

    return epoch_batches


def rendered_batches(
    source: FullSource,
    recipe: Recipe,
    *,
    view_seed: int,
    views: Sequence[int] | None,
    batch_size: int,
    seed: int,
    num_workers: int,
    device: torch.device,
    teacher: Callable[[Tensor], Tensor] | None = None,
    num_top: int = 0,
) -> Batches:
    """Epochs of rendered views in the order that (seed, epoch) draws, the same as from a cache.

    Args:
        source, recipe, view_seed: what to render.
        views: the views that epochs show, in turn; None gives each epoch a view of its own.
        batch_size, seed, num_workers, device: as for a cache.
        teacher: a live teacher, uint8 [batch, 3, height, width] -> logits [batch, class]; None for none.
        num_top: how many exact top classes the loss needs of it.
    """
    renderer = ViewRenderer(source, recipe, view_seed, device=None if num_workers else device)
    loader = ViewLoader(renderer, num_workers=num_workers, pin_memory=device.type == "cuda")

    def epoch_batches(epoch: int, done: Sequence[Stretch] = (), /) -> Iterator[Batch]:
        view = epoch if views is None else views[epoch % len(views)]
        requests = epoch_requests(source, view, epoch=epoch, batch_size=batch_size, seed=seed, done=done)
        for batch in loader.stream(requests):
            pixels = batch.pixels.to(device, non_blocking=True)
            said = None
            if teacher is not None:
                logits = teacher(pixels)
                said = TeacherBatch(logits, top_classes(logits, num_top), torch.from_numpy(batch.rows), view)
            targets = batch.targets.for_cross_entropy(len(source.classes)).to(device, non_blocking=True)
            yield Batch(normalize_pixels(pixels, source.mean, source.std), targets, said, batch.rows)

    return epoch_batches
