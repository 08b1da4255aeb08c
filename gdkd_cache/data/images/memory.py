"""Images that are decoded once and stay in memory, where all are of one size and fit a budget."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gdkd_cache.data.images.file import in_file
from gdkd_cache.data.images.free import free_memory
from gdkd_cache.data.images.standing import StandingSource, standing_for
from gdkd_cache.data.loader import ViewLoader, default_num_workers
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.source import ArraySource, EncodedSource, FullSource
from gdkd_cache.data.targets import ClassTargets, MaskTargets
from gdkd_cache.data.views import ViewBatch, ViewRenderer, ViewRequest, check_image, requests_for
from gdkd_cache.errors import SourceError
from gdkd_cache.progress import progress
from gdkd_cache.threads import mapped

_LOG = logging.getLogger(__name__)
_SAMPLE = 8
_ROWS_AT_ONCE = 64
_WORTH_WORKERS = 4096
_SMALL = 64 * 64
"""Pixels of an image beyond which one process renders slower than several that also decode, where more is done
than cropping and flipping: 256x256 `imagenet-randaug` takes 1.5 ms in memory, and 1.9 ms from JPEG in each of them."""
_FREE_SHARE = 4
"""The budget, where none is stated, is the free memory divided by this."""


class _OtherSizeError(SourceError):
    """An image is not of the first one's size."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Held(StandingSource, ArraySource):
    """A source with its decoded images; in another process, which decodes for itself, it is the source alone."""

    def decode(self, row: int, side: int | None) -> np.ndarray:
        return ArraySource.decode(self, row, None) if side is None else self.source.decode(row, side)

    def __reduce__(self) -> tuple[Callable[[FullSource], FullSource], tuple[FullSource]]:
        return _itself, (self.source,)


@dataclass(frozen=True, eq=False)
class _HeldMasks:
    """Attributes: masks: int16 [row, height, width]."""

    masks: np.ndarray

    def __getitem__(self, row: int) -> np.ndarray:
        return self.masks[row]

    def take(self, rows: np.ndarray) -> "_HeldMasks":
        return _HeldMasks(self.masks[rows])


def decoded_once(
    source: FullSource,
    recipe: Recipe,
    budget: int | None = None,
    folder: Path | None = None,
    *,
    num_workers: int | None = None,
) -> FullSource:
    """The source with its images decoded: in memory, where `in_memory` takes them; else in a file of a folder, if any.

    Args:
        source, recipe, budget, num_workers: as for `in_memory`.
        folder: as for `in_file`.

    Raises:
        UsageError, SourceError, OSError: as these two.
    """
    held = in_memory(source, recipe, budget, num_workers=num_workers)
    side = recipe.decode_side
    if folder is None or held.images is not None or (side is not None and not source.scales):
        return held
    return in_file(source, side, folder)


def _itself(source: FullSource) -> FullSource:
    return source


def in_memory(
    source: FullSource, recipe: Recipe, budget: int | None = None, *, num_workers: int | None = None
) -> FullSource:
    """The source with all its images decoded, and their masks, for the batched path; all that it says is its own.

    A source stays as it is where its images lie in memory already, are read shard by shard, differ in size or do not
    fit; and where the recipe wants scaled decoding.

    Args:
        source: the images.
        recipe: what is done to them.
        budget: the most bytes of decoded images; None is a quarter of the free memory, for images of up to 64x64, or
            of any size where the recipe only crops and flips: more work is done faster by several processes.
        num_workers: processes that decode a source that is not ours, as that may not bear threads; None is none for
            few images, else as for rendering. Image files are decoded in threads.

    Raises:
        SourceError: an image cannot be read; it names the key.
    """
    if source.images is not None or source.shard_starts is not None or recipe.decode_side is not None or budget == 0:
        return source
    sample = np.unique(np.linspace(0, len(source) - 1, _SAMPLE).astype(np.int64)).tolist()
    shapes = {check_image(source, row, source.decode(row, None)).shape for row in sample}
    height, width, _ = shapes.pop()
    size = len(source) * height * width * (3 + 2 * source.has_masks)
    if budget is None:
        worth = recipe.integral or height * width <= _SMALL
        budget = free_memory() // _FREE_SHARE if worth else 0
    if shapes or size > budget:
        return source
    images = np.empty((len(source), 3, height, width), np.uint8)
    masks = np.empty((len(source), height, width), np.int16) if source.has_masks else None
    try:
        with progress("decode", len(source), "images") as advance:
            for batch in _decoded(_Pixels(source, recipe, (height, width)), num_workers):
                images[batch.rows] = batch.pixels.numpy()
                if masks is not None and isinstance(batch.targets, MaskTargets):
                    masks[batch.rows] = batch.targets.masks.numpy()
                advance(len(batch.rows))
    except _OtherSizeError as error:
        _LOG.info("%s: they are decoded whenever they are read", error)
        return source
    _LOG.info("images: %s of %dx%d decoded into memory, %.3g MB", f"{len(source):,}", height, width, size / 1e6)
    given = standing_for(source)
    given["images"], given["masks"] = images, None if masks is None else _HeldMasks(masks)
    return _Held(**given)


def _decoded(pixels: "_Pixels", num_workers: int | None) -> Iterator[ViewBatch]:
    """All images in order: files are decoded in threads, as most of that work lets others run."""
    source = pixels.source
    requests = requests_for(0, np.arange(len(source)), _ROWS_AT_ONCE)
    if not isinstance(source, EncodedSource):
        if num_workers is None:
            num_workers = default_num_workers(source) if len(source) > _WORTH_WORKERS else 0
        yield from ViewLoader(pixels, num_workers=num_workers).stream(requests)
        return
    for batches in mapped(pixels.__getitem__, requests, default_num_workers(source)):
        yield from batches


class _Pixels(ViewRenderer):
    """Decodes a source's images: `pixels[request]` is one batch of them as they are.

    Args:
        source: the images.
        recipe: how they are decoded.
        size: the height and width that they must have.
    """

    def __init__(self, source: FullSource, recipe: Recipe, size: tuple[int, int]) -> None:
        super().__init__(source, recipe, 0)
        self._size = size

    def __getitem__(self, request: ViewRequest) -> list[ViewBatch]:
        rows, (height, width) = request.rows, self._size
        images = np.empty((len(rows), 3, height, width), np.uint8)
        masks = np.empty((len(rows), height, width), np.int16) if self.source.has_masks else None
        for position, (image, mask) in enumerate(self.decode(rows)):
            if image.shape[:2] != self._size:
                key, (found_height, found_width, _) = self.source.keys[rows[position]], image.shape
                raise _OtherSizeError(f"image {key!r} is {found_height}x{found_width}, others {height}x{width}")
            images[position] = image.transpose(2, 0, 1)
            if masks is not None and mask is not None:
                masks[position] = mask
        labels = torch.from_numpy(self.source.labels[rows])
        targets = ClassTargets(labels) if masks is None else MaskTargets(labels, torch.from_numpy(masks))
        return [ViewBatch(request.views[0], rows, torch.from_numpy(images), targets)]
