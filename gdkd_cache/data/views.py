"""Views: `(seed, view, key)` -> stream -> parameters -> uint8 pixels, alike for any batch, order and worker."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gdkd_cache.data.probes import probe_pixels
from gdkd_cache.data.recipes.mixing import Mix, partners
from gdkd_cache.data.recipes.recipe import Recipe, as_batch
from gdkd_cache.data.source import Source, name_of
from gdkd_cache.errors import SourceError, UsageError
from gdkd_cache.seeding import Words, draws, hash_keys, streams
from gdkd_cache.store.layout import PROBE_BYTES
from gdkd_cache.threads import one_thread

_BLOCK_ROWS = 1024

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
        labels: int64 [n].
        partner_labels, shares: int64 [n] and float32 [n], when the recipe mixes: the pixels are `shares` of an image
            of class `labels` and the rest of one of class `partner_labels`.
        probes: uint8 [n, 20], zeros where a row is not probed; None unless asked for.
        source_probes: the same, of the decoded images.
    """

    view: int
    rows: np.ndarray
    pixels: Tensor
    labels: Tensor
    partner_labels: Tensor | None = None
    shares: Tensor | None = None
    probes: np.ndarray | None = None
    source_probes: np.ndarray | None = None

    def pin_memory(self) -> "ViewBatch":
        """The same with page-locked pixels and labels; called by the DataLoader."""
        if self.pixels.is_cuda:
            return self
        return replace(self, pixels=self.pixels.pin_memory(), labels=self.labels.pin_memory())

    def split(self, sizes: Sequence[int]) -> Iterator["ViewBatch"]:
        """Cut it into batches of so many rows."""
        ends = np.cumsum(sizes).tolist()
        for part in (slice(end - size, end) for end, size in zip(ends, sizes, strict=True)):
            yield ViewBatch(
                self.view, **{name: _cut(value, part) for name, value in vars(self).items() if name != "view"}
            )

    def targets(self, num_classes: int) -> Tensor:
        """What cross-entropy is taken with: the labels, or float32 [n, class] where images are mixed."""
        if self.partner_labels is None or self.shares is None:
            return self.labels
        targets = torch.zeros(len(self.labels), num_classes)
        targets.scatter_(1, self.labels[:, None], self.shares[:, None])
        return targets.scatter_add_(1, self.partner_labels[:, None], 1 - self.shares[:, None])


def _cut(value: Any, part: slice) -> Any:
    return None if value is None else value[part]


class ViewRenderer(Dataset[list[ViewBatch]]):
    """Renders the views of one source: `renderer[request]` is one finished batch for each of its views.

    Args:
        source: the images.
        recipe: what is done to them.
        seed: the views' seed.
        probe_rows: bool [row]: also probe these rows of the source.
        probe_sources: also probe their decoded images.
        device: where images that lie in memory are rendered, if the recipe gives the same pixels on every device.

    Raises:
        UsageError: the recipe wants scaled decoding, and the source does not decode files; or it mixes images, and
            those of the source come and go.
    """

    def __init__(
        self,
        source: Source,
        recipe: Recipe,
        seed: int,
        *,
        probe_rows: np.ndarray | None = None,
        probe_sources: bool = False,
        device: torch.device | None = None,
    ) -> None:
        self._source = source
        self._recipe = recipe
        self._seed = seed
        self._key_hashes = hash_keys(source.keys)
        self._probe_rows = probe_rows
        self._probe_sources = probe_sources
        self._images: Tensor | None = None
        if getattr(source, "images", None) is not None:
            self._images = torch.from_numpy(getattr(source, "images"))  # noqa: B009  (optional in the protocol)
            if device is not None and device.type != "cpu" and recipe.integral:
                self._images = self._images.to(device)
        if recipe.decode_side is not None and not hasattr(source, "decode"):
            raise UsageError(f"recipe {recipe.name} has a decode_side; source {name_of(source)} decodes no files")
        if recipe.mix is not None and hasattr(source, "fetch_ahead"):
            raise UsageError(
                f"recipe {recipe.name} mixes images of all shards, which do not stay on disk; give --local-copy DIR"
            )
        self._partners: dict[int, np.ndarray] = {}

    @property
    def source(self) -> Source:
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
        batch = ViewBatch(view, rows, pixels, both.labels[own], both.labels[other], torch.from_numpy(shares))
        source_probes = None if both.source_probes is None else both.source_probes[back[: len(rows)]]
        return replace(batch, probes=self._probes(rows, pixels), source_probes=source_probes)

    def _probes(self, rows: np.ndarray, images: Sequence[np.ndarray | Tensor] | Tensor) -> np.ndarray | None:
        if self._probe_rows is None:
            return None
        probes = np.zeros((len(rows), PROBE_BYTES), np.uint8)
        for position in np.flatnonzero(self._probe_rows[rows]).tolist():
            probes[position] = probe_pixels(torch.as_tensor(images[position]).cpu().numpy())
        return probes

    def _render(self, rows: np.ndarray, views: tuple[int, ...], *, probe: bool = True) -> list[ViewBatch]:
        hashes = self._key_hashes[rows]
        words = [self._recipe.words(streams(self._seed, "view", view, hashes)) for view in views]
        if self._images is not None:
            images = self._images.index_select(0, torch.from_numpy(rows).to(self._images.device))
            labels = np.asarray(getattr(self._source, "labels"))[rows]  # noqa: B009
            pixels = [self._recipe.apply(images, own) for own in words]
            source_probes = self._probes(rows, images) if self._probe_sources else None
        else:
            pixels, labels, source_probes = self._render_each(rows, words)
        return [
            ViewBatch(
                view,
                rows,
                view_pixels.contiguous(),
                torch.as_tensor(labels, dtype=torch.int64),
                probes=self._probes(rows, view_pixels) if probe else None,
                source_probes=source_probes,
            )
            for view, view_pixels in zip(views, pixels, strict=True)
        ]

    def _render_each(
        self, rows: np.ndarray, words: list[list[Words]]
    ) -> tuple[list[Tensor], list[int], np.ndarray | None]:
        """Decode one image at a time, for all views; steps after the last that changes sizes see whole batches."""
        leading = self._recipe.num_leading
        views: list[list[Tensor]] = [[] for _ in words]
        labels, source_probes = [], []
        for position, row in enumerate(rows.tolist()):
            image, label = self._read(row)
            labels.append(label)
            if self._probe_sources:
                source_probes.append(self._probes(rows[position : position + 1], image))
            for rendered, own in zip(views, words, strict=True):
                own_words = [step_words[position : position + 1] for step_words in own]
                rendered.append(self._recipe.apply(image, own_words, slice(leading)))
                if rendered[-1].shape != rendered[0].shape:
                    raise self._size_error(rows, rendered)
        pixels = [
            self._recipe.apply(torch.cat(rendered), own, slice(leading, None))
            for rendered, own in zip(views, words, strict=True)
        ]
        return pixels, labels, np.concatenate(source_probes) if source_probes else None

    def _read(self, row: int) -> tuple[Tensor, int]:
        side = self._recipe.decode_side
        if side is None:
            image, label = self._source[row]
        else:
            source: Any = self._source
            image, label = source.decode(row, side), int(source.labels[row])
        return as_batch(check_image(self._source, row, image)), label

    def _size_error(self, rows: np.ndarray, rendered: list[Tensor]) -> SourceError:
        key, first = self._source.keys[int(rows[len(rendered) - 1])], self._source.keys[int(rows[0])]
        sizes = [f"{image.shape[2]}x{image.shape[3]}" for image in (rendered[-1], rendered[0])]
        return SourceError(
            f"view of {key!r} is {sizes[0]}, of {first!r} {sizes[1]}; recipe {self._recipe.name} must give one size: "
            "try imagenet:size=N (random resized crops) or imagenet-eval:size=N"
        )


def check_image(source: Source, row: int, image: np.ndarray) -> np.ndarray:
    """Check that a source's image is uint8 [height, width, 3].

    Raises:
        SourceError: it is not uint8 [height, width, 3].
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise SourceError(
            f"image {source.keys[row]!r} is {image.dtype} {list(image.shape)}; a source gives uint8 [height, width, 3]"
        )
    return image


def image_size(source: Source) -> tuple[int, int]:
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
