"""Views beside torchvision's pipelines, whose DataLoader has two workers."""

import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benches.pictures import photographs, small_images
from benches.timing import Bench, Figure, ratios
from gdkd_cache.data.loader import ViewLoader
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.source import FullSource
from gdkd_cache.data.views import VIEWS_AT_ONCE, ViewRenderer, requests_for
from gdkd_cache.terminal import say

_SMALL_BATCH, _LARGE_BATCH = 256, 64
_PIL, _TENSORS, _ONE, _MANY = "v2 on PIL", "v2 on tensors", "one view at a time", "8 views of one decoding"
_GOALS = {"crop-flip": ">= 15", "cifar-strong": ">= 5"}


class _Cutout(torch.nn.Module):
    """What users write, as torchvision has none."""

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        y, x = int(torch.randint(height, ())), int(torch.randint(width, ()))
        image = image.clone()
        image[..., max(y - 8, 0) : y + 8, max(x - 8, 0) : x + 8] = 0
        return image


class _Peer(Dataset[Tensor]):
    """torchvision's pipeline, image by image."""

    def __init__(self, images: Sequence[Any], transform: Callable[[Any], Tensor]) -> None:
        self._images, self._transform = images, transform

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> Tensor:
        return self._transform(self._images[row])


def _theirs(images: Sequence[Any], steps: Sequence[Callable[[Any], Any]], batch_size: int) -> Callable[[], int]:
    peer = _Peer(images, v2.Compose(steps))
    loader = DataLoader(peer, batch_size, shuffle=True, num_workers=2, persistent_workers=True)
    return lambda: sum(len(batch) for batch in loader)


def _ours(
    source: FullSource, recipe: str, batch_size: int, *, views: tuple[int, ...] = (0,), workers: int = 0
) -> Callable[[], int]:
    loader = ViewLoader(ViewRenderer(source, open_recipe(recipe, 32, 32), 0), num_workers=workers)
    rows = np.random.default_rng(0).permutation(len(source))
    return lambda: sum(len(batch.rows) for batch in loader.stream(requests_for(views, rows, batch_size)))


def render(bench: Bench) -> Iterator[Figure]:
    """Views a second against torchvision's: of small images in memory, and of JPEG files."""
    yield from _of_small_images(bench)
    yield from _of_photographs(bench)


def _of_small_images(bench: Bench) -> Iterator[Figure]:
    source = small_images(256 if bench.smoke else 50_000)
    pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in source.images]
    tensors = list(torch.from_numpy(source.images))
    crop_flip = [v2.RandomCrop(32, 4), v2.RandomHorizontalFlip()]
    strong = [*crop_flip, v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)]
    for recipe, steps, last in (("crop-flip", crop_flip, []), ("cifar-strong", strong, [_Cutout()])):
        things = {
            _PIL: _theirs(pictures, [*steps, v2.PILToTensor(), *last], _SMALL_BATCH),
            _TENSORS: _theirs(tensors, [*steps, *last], _SMALL_BATCH),
            "ours": _ours(source, recipe, _SMALL_BATCH),
        }
        times = bench.seconds(things, least=0)
        what = f"views a second, {recipe}, {len(source):,} of 32x32 in memory"
        yield _faster_than_peers(what, times, times["ours"], _GOALS[recipe])


def _of_photographs(bench: Bench) -> Iterator[Figure]:
    source = photographs(bench.jpegs, 16 if bench.smoke else 512)
    imagenet = [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip()]
    ours = partial(_ours, source, "imagenet", workers=0 if bench.smoke else 2)  # workers take seconds to start
    things = {
        _PIL: _theirs(source.files, [_decoded, *imagenet, v2.PILToTensor()], _LARGE_BATCH),
        _TENSORS: _theirs(source.files, [_decoded, v2.PILToTensor(), *imagenet], _LARGE_BATCH),
        _ONE: ours(_LARGE_BATCH),
        _MANY: ours(_LARGE_BATCH // 2, views=tuple(range(VIEWS_AT_ONCE))),
    }
    times = bench.seconds(things, least=0)
    for name, views in ((_ONE, 1), (_MANY, VIEWS_AT_ONCE)):
        rate = views * len(source) / median(times[name])
        say(f"render: imagenet, {name}: {rate:,.0f} views/s with two workers", error=True)
    what = f"views a second, imagenet, {len(source)} JPEG files"
    yield _faster_than_peers(f"{what}, {_ONE}", times, times[_ONE], ">= 1.6")
    yield _faster_than_peers(f"{what}, {_MANY}", times, [time / VIEWS_AT_ONCE for time in times[_MANY]], ">= 4")


def _decoded(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file)).convert("RGB")


def _faster_than_peers(what: str, times: dict[str, list[float]], ours: Sequence[float], goal: str) -> Figure:
    faster = min((_PIL, _TENSORS), key=lambda name: min(times[name]))
    return Figure(what=what, against=f"torchvision {faster}", ratios=ratios(times[faster], ours), goal=goal)
