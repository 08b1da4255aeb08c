"""What the trainer iterates over: an epoch of (images, labels, what the teacher said or None).

Three makers with one signature in effect: from a cache, with a live teacher, and with no teacher at all.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gdkd_cache.cache.dataset import CachedDataset, TeacherBatch
from gdkd_cache.data.loader import ViewLoader
from gdkd_cache.data.order import epoch_requests
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.source import FullSource
from gdkd_cache.data.views import ViewRenderer
from gdkd_cache.losses.partition import top_classes
from gdkd_cache.models.normalization import normalize_pixels

Batch = tuple[Tensor, Tensor, TeacherBatch | None]
Batches = Callable[[int], Iterator[Batch]]


def cached_batches(
    dataset: CachedDataset, *, batch_size: int, seed: int, num_workers: int, device: torch.device
) -> Batches:
    """Epochs from a cache, in the order that (seed, epoch) draws."""

    def epoch_batches(epoch: int) -> Iterator[Batch]:
        yield from dataset.loader(
            epoch, batch_size=batch_size, shuffle=True, seed=seed, num_workers=num_workers, device=device
        )

    return epoch_batches


def rendered_batches(
    source: FullSource,
    recipe: Recipe,
    *,
    view_seed: int,
    num_views: int | None,
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
        num_views: the views come round after so many epochs; None gives each epoch a view of its own.
        batch_size, seed, num_workers, device: as for a cache.
        teacher: a live teacher, uint8 [batch, 3, height, width] -> logits [batch, class]; None for none.
        num_top: how many exact top classes the loss needs of it.
    """
    renderer = ViewRenderer(source, recipe, view_seed, device=None if num_workers else device)
    loader = ViewLoader(renderer, num_workers=num_workers, pin_memory=device.type == "cuda")

    def epoch_batches(epoch: int) -> Iterator[Batch]:
        view = epoch if num_views is None else epoch % num_views
        for batch in loader.stream(epoch_requests(source, view, epoch=epoch, batch_size=batch_size, seed=seed)):
            pixels = batch.pixels.to(device, non_blocking=True)
            said = None
            if teacher is not None:
                logits = teacher(pixels)
                said = TeacherBatch(logits, top_classes(logits, num_top), torch.from_numpy(batch.rows), view)
            targets = batch.targets.for_cross_entropy(len(source.classes)).to(device, non_blocking=True)
            yield normalize_pixels(pixels, source.mean, source.std), targets, said

    return epoch_batches
