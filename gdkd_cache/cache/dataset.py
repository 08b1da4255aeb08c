"""A cache joined with the source it was built from: what a training loop iterates over."""

import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gdkd_cache.cache.batch import TeacherBatch
from gdkd_cache.cache.held import HeldViews
from gdkd_cache.cache.loader import CachedLoader, LoadedBatch
from gdkd_cache.cache.replay import check_replay, compare_images, comparison_with, recipe_of, rounding_line
from gdkd_cache.cache.rows import match_rows
from gdkd_cache.cache.several import batches_of, by_view, put_back, requests_by_view
from gdkd_cache.cache.view import View
from gdkd_cache.data.images.memory import decoded_once
from gdkd_cache.data.loader import ViewLoader
from gdkd_cache.data.order import Stretch, epoch_requests
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.source import FullSource
from gdkd_cache.data.view_numbers import chosen_views
from gdkd_cache.data.views import ViewRenderer, ViewRequest
from gdkd_cache.errors import MismatchError, UsageError
from gdkd_cache.losses.partition import top_classes
from gdkd_cache.models.normalization import normalize_pixels
from gdkd_cache.schema import short
from gdkd_cache.store.reader import CacheReader

_LOG = logging.getLogger(__name__)
Normalization = tuple[tuple[float, ...], tuple[float, ...]]

_PROBES_AT_START = 512
_BLOCK_ROWS = 4096
_BLOCK_LOGITS = 2**22
"""Batches are decoded several at once, up to so many rows and logits: a few large operations, not many small ones."""


class CachedDataset:
    """Images, labels and the teacher's logits, view by view. Made by `Cache.dataset` or `Ensemble.dataset`.

    Attributes:
        replay: what the probes said when it was made, of several caches those of the one that differs most; and what
            is known of the other images.
        view_numbers: the views that epochs show, in turn.
        source: its images, in memory where they were taken there.
        recipe: what its views are made with.
        size: height and width of its views.
        cells: of which a teacher says something, of each image.
    """

    def __init__(
        self,
        caches: Sequence[CacheReader],
        source: FullSource,
        *,
        weights: Sequence[float] = (1.0,),
        temperature: float | None,
        strict_replay: bool,
        recipe: Recipe | None,
        size: int | None,
        views: str | Sequence[int] | None,
        images_in_memory: int | None,
        decoded: Path | None,
        num_workers: int | None,
    ) -> None:
        first = caches[0]
        recipe = recipe_of(first, recipe)
        made = first.manifest.identity.views
        assert made is not None
        self.view_numbers = chosen_views(views, first.manifest.identity.view_numbers, first.path)
        self.cache_rows = match_rows(first, source)
        if recipe.mix is not None and len(source) < len(first.keys):
            raise MismatchError(
                f"recipe {recipe.name} mixes images, and source {source.name} has {len(source)} of the "
                f"{len(first.keys)} in {first.path}: a partner may be any of them; give the whole data"
            )
        replays = [
            check_replay(
                cache,
                source,
                self.cache_rows,
                self.view_numbers[:1],
                recipe=recipe,
                limit=_PROBES_AT_START,
                strict=strict_replay,
            )
            for cache in caches
        ]
        self.source = source = decoded_once(source, recipe, images_in_memory, decoded, num_workers=num_workers)
        # Images in memory are compared now, once and for all; others whenever they are decoded.
        self._comparison = comparison_with(caches, source, self.cache_rows, strict=strict_replay)
        kept = [cache.manifest.identity.views for cache in caches]
        all_checked = all(facts is not None and facts.source_checks for facts in kept)
        images = {"unchecked": 0 if all_checked else len(source)}
        if self._comparison is not None and source.images is not None:
            images |= {"images": len(source), "rounding_images": compare_images(source, recipe, self._comparison)}
        elif self._comparison is not None:
            images["pending"] = len(source)
        self.replay = replace(max(replays, key=lambda replay: replay.worst_rms), **images)
        self._rounding_told = False
        self._caches, self._weights = caches, weights
        self._temperature = temperature
        self._num_classes, self.cells = len(first.manifest.identity.classes), first.manifest.identity.cells
        height, width = made.size
        self.recipe = recipe if size is None else recipe.at_size((height, width), size)
        self.size = (height, width) if size is None else (size, size)
        self._seed = made.seed
        self._loaders: dict[tuple[int, str], ViewLoader] = {}
        self._held = HeldViews(caches, self.view_numbers)

    def __len__(self) -> int:
        return len(self.cache_rows)

    def first_views(self) -> list[View]:
        """The view of epoch 0 of each cache, which stays until that epoch."""
        return self._held.first()

    def hold_views(self) -> None:
        """Keep all views in memory from now on; see `HeldViews.hold_all`."""
        self._held.hold_all()

    def _said(
        self,
        views: Mapping[int, list[View]],
        requests: Sequence[ViewRequest],
        row_views: np.ndarray | None,
        device: str | torch.device,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each request logits [batch, *grid, class] and top classes [batch, *grid, k]: of a cache, or the mean."""
        most = max(min(_BLOCK_ROWS, _BLOCK_LOGITS // (self._num_classes * self.cells.number)), 1)
        for block in _blocks([request.rows for request in requests], most):
            rows, sizes = np.concatenate(block), [len(rows) for rows in block]
            batches = []
            for cache in range(len(self._caches)):
                own = {number: held[cache] for number, held in views.items()}
                logits, top = self._decoded(own, rows, row_views, device)
                batches.append(zip(logits.split(sizes), top.split(sizes), strict=True))
            if len(batches) == 1:
                yield from batches[0]
                continue
            assert self._temperature is not None
            for batch in zip(*batches, strict=True):
                logits = mean_logits([logits for logits, _ in batch], self._weights, self._temperature)
                yield logits, top_classes(logits, min(classes.shape[-1] for _, classes in batch))

    def _decoded(
        self, views: Mapping[int, View], rows: np.ndarray, row_views: np.ndarray | None, device: str | torch.device
    ) -> tuple[Tensor, Tensor]:
        """Logits and top classes of some rows of the source, of one cache."""
        if row_views is None:
            (view,) = views.values()
            logits, top = view.decode(self.cache_rows[rows], device, temperature=self._temperature)
            return logits, top.classes
        numbers = row_views[rows]
        parts = [
            views[number].decode(self.cache_rows[rows[at]], device, temperature=self._temperature)
            for number, at in by_view(numbers).items()
        ]
        logits = put_back([logits for logits, _ in parts], numbers)
        return logits, put_back([top.classes for _, top in parts], numbers)

    def _loader(self, num_workers: int, device: torch.device) -> ViewLoader:
        key = (num_workers, str(device))
        if key not in self._loaders:
            renderer = ViewRenderer(
                self.source,
                self.recipe,
                self._seed,
                comparison=self._comparison,
                device=None if num_workers else device,
            )
            self._loaders[key] = ViewLoader(renderer, num_workers=num_workers, pin_memory=device.type == "cuda")
        return self._loaders[key]

    def loader(
        self,
        epoch: int = 0,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        normalize: Normalization | str | None = "source",
        num_workers: int = 0,
        device: str | torch.device = "cpu",
        part: tuple[int, int] | None = None,
        first_batch: int = 0,
        done: Sequence[Stretch] = (),
        row_views: np.ndarray | None = None,
    ) -> CachedLoader:
        """Epochs, a pass each: every row of the source (or of a rank's part) once, as one of the views, in turn.

        Batches are images [batch, channel, height, width] (float32, or uint8 without normalisation), labels int64
        [batch] (float32 [batch, class] where the recipe mixes images: cross-entropy takes both), and a `TeacherBatch`.

        Workers are processes that begin afresh: a script whose work stands outside `if __name__ == "__main__":` would
        begin again in each, and is told so. A notebook, and `num_workers=0`, need no such line. For a GPU, uint8 pixels
        are page-locked and their copy is only queued, as the decoding is: while the GPU computes a step, the loop can
        have the next batch, if it reads no value of the step meanwhile.

        Args:
            epoch: of the first pass, from 0; decides the view and, with `seed`, the order.
            batch_size: rows a batch; the last one may be smaller.
            shuffle: draw the order from (seed, epoch); otherwise the source's order. Images that are streamed from
                shards are shuffled shard by shard.
            seed: for the order only; the views' seed is the cache's.
            normalize: (mean, std) of the channels for pixels in [0, 1]; `source` takes the source's own; None
                yields uint8.
            num_workers: processes that render; 0 is fastest for images in memory.
            device: where batches are put, and decoded.
            part: (rank, world size): every row is in exactly one part, and all parts have as many batches if
                `batch_size` is at least 2; None takes torch.distributed's where it is initialised, else everything.
            first_batch: leave out the first pass's batches before this one, to go on with an interrupted epoch.
            done: what was done of that epoch before with other numbers of ranks, as for `epoch_requests`.
            row_views: the view of each row of the source, int64 [row], in all passes, in place of the epoch's; all
                views are then held in memory.

        Raises:
            UsageError: `normalize` is another text, or `row_views` has views that epochs do not show, or those take too
                much memory. Other numbers out of range are refused when a pass begins.
        """
        if isinstance(normalize, str):
            if normalize != "source":
                raise UsageError(f"normalize is {normalize!r}; give (mean, std), 'source' or None")
            normalize = self.source.mean, self.source.std
        facts = {"seed": seed, "shuffle": shuffle}
        if row_views is not None:
            if row_views.shape != (len(self),) or not np.isin(row_views, self.view_numbers).all():
                raise UsageError(f"row_views must have one of the views {short(list(self.view_numbers))} for each row")
            facts["row_views"] = sha256(row_views.astype("<i8").tobytes()).hexdigest()
            self.hold_views()

        def requests(epoch: int, done: Sequence[Stretch], first_batch: int) -> list[ViewRequest]:
            return epoch_requests(
                self.source,
                self._held.number(epoch),
                epoch=epoch,
                batch_size=batch_size,
                seed=seed,
                shuffle=shuffle,
                part=part,
                first_batch=first_batch,
                done=done,
            )

        return CachedLoader(
            requests,
            partial(
                self._batches,
                row_views=row_views,
                normalize=normalize,
                num_workers=num_workers,
                device=torch.device(device),
            ),
            part=part,
            batch_size=batch_size,
            epoch=epoch,
            first_batch=first_batch,
            done=done,
            facts=lambda: {**facts, **self._facts},
        )

    @cached_property
    def _facts(self) -> dict[str, Any]:
        """What the rows and views of an epoch depend on, beside its order."""
        caches = [cache.manifest.digest for cache in self._caches]
        return {"views": list(self.view_numbers), "caches": caches, "source": self.source.digest}

    def _batches(
        self,
        epoch: int,
        requests: Sequence[ViewRequest],
        *,
        row_views: np.ndarray | None,
        normalize: Normalization | None,
        num_workers: int,
        device: torch.device,
    ) -> Iterator[LoadedBatch]:
        """The batches that were requested, all of one epoch."""
        loader = self._loader(num_workers, device)
        if row_views is None:
            views = {self._held.number(epoch): self._held.of_epoch(epoch)}
            batches = loader.stream(requests)
        else:
            views = self._held.all()
            numbers = [row_views[request.rows] for request in requests]
            asked = itertools.chain.from_iterable(map(requests_by_view, requests, numbers))
            batches = batches_of(loader.stream(asked), numbers)
        said = self._said(views, requests, row_views, device)
        rounded: list[np.ndarray] = []
        try:
            for batch, (logits, top) in zip(batches, said, strict=True):
                rows = self.cache_rows[batch.rows]
                pixels = batch.pixels.to(device, non_blocking=True)
                images = pixels if normalize is None else normalize_pixels(pixels, *normalize)
                view = batch.view if row_views is None else _shown(row_views[batch.rows])
                teacher = TeacherBatch(logits, top, torch.from_numpy(rows), view)
                targets = batch.targets.for_cross_entropy(self._num_classes)
                if batch.rounded is not None:
                    rounded.append(batch.rounded)
                yield images, targets.to(device, non_blocking=True), teacher
        finally:
            self._tell_rounding(np.concatenate([np.empty(0, bool), *rounded]))

    def _tell_rounding(self, rounded: np.ndarray) -> None:
        """Say once, at the end of an epoch, that of its decoded images, bool [image], some differ by rounding."""
        if rounded.any() and not self._rounding_told:
            self._rounding_told = True
            _LOG.warning("%s", rounding_line(int(rounded.sum()), len(rounded)))


def _shown(numbers: np.ndarray) -> int | Tensor:
    """The view of all rows of a batch or, where they are of several, int64 [batch]."""
    return int(numbers[0]) if (numbers == numbers[0]).all() else torch.from_numpy(numbers)


def _blocks(batches: Sequence[np.ndarray], most: int) -> Iterator[list[np.ndarray]]:
    """Consecutive batches of rows together, as many as have at most so many rows; at least one."""
    block: list[np.ndarray] = []
    for rows in batches:
        if block and sum(map(len, block)) + len(rows) > most:
            yield block
            block = []
        block.append(rows)
    if block:
        yield block


def mean_logits(
    logits: Sequence[Float[Tensor, "batch class"]], weights: Sequence[float], temperature: float
) -> Float[Tensor, "batch class"]:
    """The mean of several teachers' probabilities at a temperature, as logits: T log sum_i w_i softmax(z_i / T).

    Args:
        logits: float32 [batch, class], one a teacher, each up to a constant per row.
        weights: one a teacher, above 0, with the sum 1.
        temperature: T > 0.
    """
    log_p = [(z / temperature).log_softmax(-1) + math.log(w) for z, w in zip(logits, weights, strict=True)]
    return temperature * torch.stack(log_p).logsumexp(0)
