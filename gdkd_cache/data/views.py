"""Views: `(seed, view, key)` -> stream -> parameters -> uint8 pixels, alike for any batch, order and worker."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gdkd_cache.data.checks import Checks, Comparison, Sample, check_images
from gdkd_cache.data.masks import check_mask_size
from gdkd_cache.data.probes import probe_pixels
from gdkd_cache.data.recipes.mixing import Mix, partners
from gdkd_cache.data.recipes.recipe import Recipe, as_batch
from gdkd_cache.data.source import FullSource
from gdkd_cache.data.targets import ClassTargets, MaskTargets, Targets
from gdkd_cache.errors import SourceError, UsageError
from gdkd_cache.seeding import Words, draws, hash_keys, streams
from gdkd_cache.store.layout import PROBE_BYTES
from gdkd_cache.threads import one_thread

_MOST_ON_DEVICE = 2**32
"""Bytes of images in memory that are copied to a GPU to be rendered there."""

VIEWS_AT_ONCE = 8
"""For how many views an image is decoded once."""


@dataclass(frozen=True)
class ViewRequest:
    """Which rows of a source to render, int64 [n], as which views: each image is decoded once for all of them."""

    views: tuple[int, ...]
    rows: np.ndarray


@dataclass(frozen=True)
class ViewBatch:
    """One rendered view of some rows.

    Attributes:
        view, rows: as requested; rows int64 [n] are rows of the source.
        pixels: uint8 [n, channel, height, width].
        targets: of the n images; mixed when the recipe mixes, moved with the pixels where they are masks.
        probes: uint8 [n, 20], zeros where a row is not probed; None unless asked for.
        source_probes: the same, of the decoded images.
        source_checks: uint8 [n, 8], the checks of the decoded images; None unless asked for.
        sizes: height and width of the decoded images, uint16 [n, 2].
        rounded: bool [n], which of the decoded images differ by rounding from those that they were compared with; None
            where they were not.
    """

    view: int
    rows: np.ndarray
    pixels: Tensor
    targets: Targets
    probes: np.ndarray | None = None
    source_probes: np.ndarray | None = None
    source_checks: np.ndarray | None = None
    sizes: np.ndarray | None = None
    rounded: np.ndarray | None = None

    def pin_memory(self) -> "ViewBatch":
        """The same with page-locked pixels and targets; called by the DataLoader."""
        if self.pixels.is_cuda:
            return self
        return replace(self, pixels=self.pixels.pin_memory(), targets=self.targets.pin_memory())

    def split(self, sizes: Sequence[int]) -> Iterator["ViewBatch"]:
        """Cut it into batches of so many rows."""
        ends = np.cumsum(sizes).tolist()
        for part in (slice(end - size, end) for end, size in zip(ends, sizes, strict=True)):
            yield ViewBatch(
                self.view, **{name: _cut(value, part) for name, value in vars(self).items() if name != "view"}
            )


def _cut(value: Any, part: slice | np.ndarray) -> Any:
    return None if value is None else value[part]


class _Decoded(NamedTuple):
    """What is told of the decoded images of a batch; see `ViewBatch`."""

    source_probes: np.ndarray | None = None
    source_checks: np.ndarray | None = None
    sizes: np.ndarray | None = None
    rounded: np.ndarray | None = None


class ViewRenderer(Dataset[list[ViewBatch]]):
    """Renders the views of one source: `renderer[request]` is one finished batch for each of its views.

    Args:
        source: the images.
        recipe: what is done to them.
        seed: the views' seed.
        probe_rows: bool [row]: also probe these rows of the source.
        probe_sources: also probe their decoded images.
        check_with: also take the checks of the images that are decoded for this view.
        comparison: what every image must be that is decoded; those that lie in memory are not compared here.
        device: where images that lie in memory are rendered, if the recipe gives the same pixels on every device.

    Raises:
        UsageError: the recipe wants scaled decoding, and the source does not decode files; it mixes images, and
            those of the source come and go; or it is not for images with masks, or only for them, as the source's
            are not.
    """

    def __init__(
        self,
        source: FullSource,
        recipe: Recipe,
        seed: int,
        *,
        probe_rows: np.ndarray | None = None,
        probe_sources: bool = False,
        check_with: int | None = None,
        comparison: Comparison | None = None,
        device: torch.device | None = None,
    ) -> None:
        self._source = source
        self._recipe = recipe
        self._seed = seed
        self._key_hashes = hash_keys(source.keys)
        self._probe_rows = probe_rows
        self._probe_sources = probe_sources
        self._check_with = check_with
        self._comparison = comparison
        self._images = self._whole_images()
        on_device = device is not None and device.type != "cpu" and recipe.integral
        if on_device and self._images is not None and self._images.nbytes <= _MOST_ON_DEVICE:
            self._images = self._images.to(device)
        if recipe.decode_side is not None and not source.scales:
            raise UsageError(f"recipe {recipe.name} has a decode_side; source {source.name} decodes no files")
        if recipe.mix is not None and source.remote is not None:
            raise UsageError(
                f"recipe {recipe.name} mixes images of all shards, which do not stay on disk; give --local-copy DIR"
            )
        recipe.check_targets(source.has_masks)
        self._partners: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_images": None}  # the source brings its own, if they lie in memory there too

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._images = self._whole_images()

    def _whole_images(self) -> Tensor | None:
        """The images that lie in memory, where they are what the recipe wants decoded."""
        images = None if self._recipe.decode_side is not None else self._source.images
        return None if images is None else torch.from_numpy(images)

    @property
    def source(self) -> FullSource:
        """The images."""
        return self._source

    @property
    def in_memory(self) -> bool:
        """Whether whole batches are rendered at once, from images that lie in memory."""
        return self._images is not None

    @one_thread()
    def __getitem__(self, request: ViewRequest) -> list[ViewBatch]:
        if self._recipe.mix is None:
            return self._render(request.rows, request.views)
        return [self._render_mixed(request.rows, view, self._recipe.mix) for view in request.views]

    def _render_mixed(self, rows: np.ndarray, view: int, mix: Mix) -> ViewBatch:
        if view not in self._partners:
            self._partners = {view: partners(self._seed, view, self._key_hashes)}  # one view at a time
        others = self._partners[view][rows]
        unique, back = np.unique(np.concatenate([rows, others]), return_inverse=True)
        (both,) = self._render(unique, (view,), probe=False)
        own, other = torch.from_numpy(back[: len(rows)]), torch.from_numpy(back[len(rows) :])
        state = streams(self._seed, "mix", view, self._key_hashes[rows])
        device = both.pixels.device
        pixels, shares = mix.apply(
            both.pixels[own.to(device)], both.pixels[other.to(device)], draws(state, range(mix.num_draws))
        )
        assert isinstance(both.targets, ClassTargets)
        targets = both.targets[own].mixed(both.targets[other], torch.from_numpy(shares))
        decoded = (both.source_probes, both.source_checks, both.sizes, both.rounded)
        told = _Decoded(*(_cut(value, back[: len(rows)]) for value in decoded))
        return ViewBatch(view, rows, pixels, targets, self._probes(rows, pixels), *told)

    def _probes(
        self, rows: np.ndarray, images: Sequence[np.ndarray | Tensor] | Tensor, masks: Tensor | None = None
    ) -> np.ndarray | None:
        if self._probe_rows is None:
            return None
        probes = np.zeros((len(rows), PROBE_BYTES), np.uint8)
        for position in np.flatnonzero(self._probe_rows[rows]).tolist():
            mask = None if masks is None else masks[position].numpy()
            probes[position] = probe_pixels(torch.as_tensor(images[position]).cpu().numpy(), mask)
        return probes

    def _render(self, rows: np.ndarray, views: tuple[int, ...], *, probe: bool = True) -> list[ViewBatch]:
        hashes = self._key_hashes[rows]
        words = [self._recipe.words(streams(self._seed, "view", view, hashes)) for view in views]
        if self._images is not None:
            images = self._images.index_select(0, torch.from_numpy(rows).to(self._images.device))
            masks = self._whole_masks(rows)
            rendered = [self._apply(images, masks, own) for own in words]
            probes = self._probes(rows, images, masks) if self._probe_sources else None
            check = self._check_with in views
            sizes = np.tile(np.array([images.shape[2:]], np.uint16), (len(rows), 1))
            told = _Decoded(probes, check_images(self.decode(rows), len(rows)) if check else None, sizes)
        else:
            rendered, told = self._render_each(rows, words, check=self._check_with in views)
        labels = torch.from_numpy(self._source.labels[rows])
        return [
            ViewBatch(
                view,
                rows,
                pixels.contiguous(),
                ClassTargets(labels) if masks is None else MaskTargets(labels, masks.contiguous()),
                self._probes(rows, pixels, masks) if probe else None,
                *told,
            )
            for view, (pixels, masks) in zip(views, rendered, strict=True)
        ]

    def _whole_masks(self, rows: np.ndarray) -> Tensor | None:
        """The masks of images that lie in memory: int16 [n, height, width]."""
        source = self._source
        if source.images is None or not source.has_masks:
            return None
        masks = np.empty((len(rows), *source.images.shape[2:]), np.int16)
        for position, row in enumerate(map(int, rows)):
            mask = source.mask(row)
            check_mask_size(source.keys[row], mask, masks.shape[1:])
            masks[position] = mask
        return torch.from_numpy(masks)

    def _apply(
        self, images: Tensor, masks: Tensor | None, words: list[Words], steps: slice = slice(None)
    ) -> tuple[Tensor, Tensor | None]:
        if masks is None:
            return self._recipe.apply(images, words, steps), None
        return self._recipe.apply_both(images, masks, words, steps)

    def _render_each(
        self, rows: np.ndarray, words: list[list[Words]], *, check: bool
    ) -> tuple[list[tuple[Tensor, Tensor | None]], _Decoded]:
        """Decode one image at a time, for all views; steps after the last that changes sizes see whole batches."""
        leading = self._recipe.num_leading
        views: list[list[tuple[Tensor, Tensor | None]]] = [[] for _ in words]
        source_probes = []
        checks = Checks(len(rows)) if check else None
        rounded = None if self._comparison is None else np.zeros(len(rows), bool)
        sizes = np.zeros((len(rows), 2), np.uint16)
        for position, (row, sample) in enumerate(zip(rows.tolist(), self.decode(rows), strict=True)):
            if checks is not None:
                checks.see(position, *sample)
            if self._comparison is not None and rounded is not None:
                rounded[position] = not self._comparison.is_exact(row, sample)
            sizes[position] = side_lengths(sample[0])
            image, mask = as_batch(sample[0]), None if sample[1] is None else torch.from_numpy(sample[1])[None]
            if self._probe_sources:
                source_probes.append(self._probes(rows[position : position + 1], image, mask))
            for rendered, own in zip(views, words, strict=True):
                own_words = [step_words[position : position + 1] for step_words in own]
                rendered.append(self._apply(image, mask, own_words, slice(leading)))
                if rendered[-1][0].shape != rendered[0][0].shape:
                    raise self._size_error(rows, [pixels for pixels, _ in rendered])
        finished = []
        for rendered, own in zip(views, words, strict=True):
            masks = [mask for _, mask in rendered if mask is not None]
            pixels = torch.cat([pixels for pixels, _ in rendered])
            finished.append(self._apply(pixels, torch.cat(masks) if masks else None, own, slice(leading, None)))
        probes = np.concatenate(source_probes) if source_probes else None
        return finished, _Decoded(probes, None if checks is None else checks.finish(), sizes, rounded)

    def decode(self, rows: np.ndarray) -> Iterator[Sample]:
        """Some rows' images, one after the other: uint8 [height, width, 3], and their masks, if they have any.

        Raises:
            SourceError: an image or mask cannot be read, or is something else.
        """
        source, side = self._source, self._recipe.decode_side
        if source.images is not None and self.in_memory:
            # Channel by channel: several times faster than a transposed copy.
            images = np.stack([*source.images[rows].swapaxes(0, 1)], axis=-1)
            masks = self._whole_masks(rows)
            yield from zip(images, itertools.repeat(None) if masks is None else masks.numpy(), strict=masks is not None)
            return
        for row in rows.tolist():
            image, target = source[row] if side is None else (source.decode(row, side), None)
            image = np.require(check_image(source, row, image), requirements=["C", "W"])
            yield image, target if source.has_masks else None

    def _size_error(self, rows: np.ndarray, rendered: list[Tensor]) -> SourceError:
        key, first = self._source.keys[int(rows[len(rendered) - 1])], self._source.keys[int(rows[0])]
        sizes = [f"{image.shape[2]}x{image.shape[3]}" for image in (rendered[-1], rendered[0])]
        return SourceError(
            f"view of {key!r} is {sizes[0]}, of {first!r} {sizes[1]}; recipe {self._recipe.name} must give one size: "
            "try imagenet:size=N (random resized crops), imagenet-eval:size=N or scale-crop:height=N,width=N"
        )


def check_image(source: FullSource, row: int, image: np.ndarray) -> np.ndarray:
    """Check that a source's image is uint8 [height, width, 3].

    Raises:
        SourceError: it is not uint8 [height, width, 3].
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise SourceError(
            f"image {source.keys[row]!r} is {image.dtype} {list(image.shape)}; a source gives uint8 [height, width, 3]"
        )
    return image


def side_lengths(image: np.ndarray) -> np.ndarray:
    """Height and width of an image, or 65535 where they are larger."""
    return np.minimum(image.shape[:2], 2**16 - 1)


def image_size(source: FullSource) -> tuple[int, int]:
    """Height and width of a source's first image.

    Raises:
        SourceError: it cannot be decoded or is no uint8 [height, width, 3].
    """
    height, width = check_image(source, 0, source[0][0]).shape[:2]
    return height, width


def requests_for(views: int | tuple[int, ...], rows: np.ndarray, batch_size: int) -> list[ViewRequest]:
    """Cut rows into requests of at most `batch_size`, in order; several views share each image's decoding."""
    group = (views,) if isinstance(views, int) else views
    return [ViewRequest(group, rows[first : first + batch_size]) for first in range(0, len(rows), batch_size)]
