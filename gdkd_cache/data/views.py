"""Views: `(seed, view, key)` -> stream -> parameters -> uint8 pixels, alike for any batch, order and worker."""

import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from gdkd_cache.data.probes import probe_pixels
from gdkd_cache.data.recipes import Recipe
from gdkd_cache.data.source import Source
from gdkd_cache.errors import GdkdCacheError, SourceError
from gdkd_cache.seeding import hash_keys, streams


@dataclass(frozen=True)
class ViewRequest:
    """Which rows of a source to render as which view: rows int64 [n]."""

    view: int
    rows: np.ndarray


@dataclass(frozen=True)
class ViewBatch:
    """Rendered views.

    Attributes:
        view, rows: as requested; rows int64 [n] are rows of the source.
        pixels: uint8 [n, channel, height, width].
        labels: int64 [n].
        probes: uint8 [n, 20], zeros where a row is not probed; None unless asked for.
    """

    view: int
    rows: np.ndarray
    pixels: Tensor
    labels: Tensor
    probes: np.ndarray | None


class ViewRenderer(Dataset[ViewBatch]):
    """Renders the views of one source: `renderer[request]` is one finished batch.

    Args:
        source: the images.
        recipe: what is done to them.
        seed: the views' seed.
        probe_rows: bool [row]: also probe these rows of the source.
    """

    def __init__(self, source: Source, recipe: Recipe, seed: int, *, probe_rows: np.ndarray | None = None) -> None:
        self._source = source
        self._recipe = recipe
        self._seed = seed
        self._images: np.ndarray | None = getattr(source, "images", None)
        self._key_hashes = hash_keys(source.keys)
        self._probe_rows = probe_rows

    def __getitem__(self, request: ViewRequest) -> ViewBatch:
        rows = request.rows
        state = streams(self._seed, "view", request.view, self._key_hashes[rows])
        if self._images is not None:
            pixels = self._recipe.apply(self._images[rows], state)
            labels = np.asarray(getattr(self._source, "labels"))[rows]  # noqa: B009  (optional in the protocol)
        else:
            pixels, labels = self._render_each(rows, state)
        probes = None if self._probe_rows is None else probe_pixels(pixels, self._probe_rows[rows])
        return ViewBatch(
            request.view, rows, torch.from_numpy(pixels), torch.as_tensor(labels, dtype=torch.int64), probes
        )

    def _render_each(self, rows: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, list[int]]:
        views, labels = [], []
        for position, row in enumerate(rows.tolist()):
            image, label = self._source[row]
            view = self._recipe.apply(check_image(self._source, row, image), state[position : position + 1])[0]
            if views and view.shape != views[0].shape:
                raise SourceError(
                    f"view of {self._source.keys[row]!r} is {view.shape[1]}x{view.shape[2]}, of "
                    f"{self._source.keys[int(rows[0])]!r} {views[0].shape[1]}x{views[0].shape[2]}; recipe "
                    f"{self._recipe.name} must give one size: try crop-flip:size=N"
                )
            views.append(view)
            labels.append(label)
        return np.stack(views), labels


def check_image(source: Source, row: int, image: np.ndarray) -> np.ndarray:
    """A source's image as uint8 [1, 3, height, width].

    Raises:
        SourceError: it is not uint8 [height, width, 3].
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise SourceError(
            f"image {source.keys[row]!r} is {image.dtype} {list(image.shape)}; a source gives uint8 [height, width, 3]"
        )
    return image.transpose(2, 0, 1)[None]


class _Requests(Sampler[ViewRequest]):
    """The requests of the current pass, in the main process: workers that persist see each pass's own."""

    def __init__(self) -> None:
        self.current: Iterable[ViewRequest] = ()

    def __iter__(self) -> Iterator[ViewRequest]:
        return iter(self.current)


class ViewLoader:
    """Streams rendered batches in the order of the requests, from worker processes or this one.

    Args:
        renderer: what renders one request.
        num_workers: worker processes; 0 renders here, which is fastest for images that lie in memory.
        pin_memory: page-locked batches, for copies to a GPU.
    """

    def __init__(self, renderer: ViewRenderer, *, num_workers: int = 0, pin_memory: bool = False) -> None:
        self._requests = _Requests()
        # Not fork: this process may hold threads (Zarr's, the writer's) whose locks a child would inherit.
        context = multiprocessing.get_context("forkserver") if num_workers else None
        if context is not None:
            context.set_forkserver_preload([__name__])  # torch is imported once, not once a worker
        self._loader = DataLoader(
            _ErrorsAsValues(renderer),
            batch_size=None,
            sampler=self._requests,
            collate_fn=_as_is,
            num_workers=num_workers,
            multiprocessing_context=context,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # its own, so that the global generator is left alone
        )

    def stream(self, requests: Sequence[ViewRequest]) -> Iterator[ViewBatch]:
        """Render the requests in order.

        Raises:
            SourceError: an image cannot be read or rendered; it names the key.
        """
        self._requests.current = requests
        for batch in self._loader:
            if isinstance(batch, GdkdCacheError):
                raise batch
            yield batch


class _ErrorsAsValues(Dataset[ViewBatch | GdkdCacheError]):
    """Carries our errors out of workers as they are: the DataLoader would wrap them in a traceback."""

    def __init__(self, renderer: ViewRenderer) -> None:
        self._renderer = renderer

    def __getitem__(self, request: ViewRequest) -> ViewBatch | GdkdCacheError:
        try:
            return self._renderer[request]
        except GdkdCacheError as error:
            return error


def _as_is(batch: Any) -> Any:
    """The collation of a batch that is finished already."""
    return batch


def image_size(source: Source) -> tuple[int, int]:
    """Height and width of a source's first image.

    Raises:
        SourceError: it cannot be decoded or is no uint8 [height, width, 3].
    """
    height, width = check_image(source, 0, source[0][0]).shape[2:]
    return height, width


def normalize_pixels(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [n, channel, height, width] to float32, (x / 255 - mean) / std for each channel, on its device."""
    scale = torch.tensor([mean, std], device=pixels.device).mul_(255)[:, None, :, None, None]
    return pixels.to(torch.float32).sub_(scale[0]).div_(scale[1])


def requests_for(view: int, rows: np.ndarray, batch_size: int) -> list[ViewRequest]:
    """Cut rows into requests of at most `batch_size`, in order."""
    return [ViewRequest(view, rows[first : first + batch_size]) for first in range(0, len(rows), batch_size)]


def default_num_workers(source: Source) -> int:
    """Images in memory are rendered in whole batches by this process, which is faster than any worker."""
    return 0 if getattr(source, "images", None) is not None else min(os.cpu_count() or 1, 8)
