"""How fast views render, side by side with torchvision's pipeline on the same cores: scripts/bench_views.py

Small images lie in memory (32x32, synthetic, 50,000 of them); large ones are 500x375 JPEG files cut from
scikit-learn's photographs. Each pair is timed in turn, and the best of each is compared.
"""

import argparse
import io
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from gdkd_cache.data.checks import Comparison, check_images
from gdkd_cache.data.loader import ViewLoader
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.source import ArraySource, EncodedSource, FullSource, settle
from gdkd_cache.data.views import ViewRenderer, requests_for
from gdkd_cache.seeding import hash_keys, streams

MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


class Cutout(torch.nn.Module):
    """What users write, as torchvision has none."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[-2:]
        y, x = int(torch.randint(height, ())), int(torch.randint(width, ()))
        image = image.clone()
        image[..., max(y - 8, 0) : y + 8, max(x - 8, 0) : x + 8] = 0
        return image


class Peer(Dataset[torch.Tensor]):
    """torchvision's pipeline, image by image."""

    def __init__(self, images: Iterable[Any], transform: Callable[[Any], torch.Tensor]) -> None:
        self._images, self._transform = list(images), transform

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self._transform(self._images[row])


def peer(images: Iterable[Any], transform: Callable[[Any], torch.Tensor], batch_size: int) -> Callable[[], int]:
    loader = DataLoader(Peer(images, transform), batch_size, shuffle=True, num_workers=2, persistent_workers=True)
    return lambda: sum(len(batch) for batch in loader)


def ours(
    source: ArraySource | EncodedSource, recipe: str, batch_size: int, views: tuple[int, ...] = (0,)
) -> Callable[[], int]:
    renderer = ViewRenderer(source, open_recipe(recipe, 32, 32), 0)
    loader = ViewLoader(renderer, num_workers=0 if renderer.in_memory else 2)
    rows = np.random.default_rng(0).permutation(len(source))
    return lambda: sum(len(batch.rows) for batch in loader.stream(requests_for(views, rows, batch_size)))


def rates(runs: dict[str, Callable[[], int]], repeats: int) -> dict[str, float]:
    """Images a second of each, the best of several runs in turn; the first run of each starts its workers."""
    for run in runs.values():
        run()
    best = dict.fromkeys(runs, 0.0)
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            count = run()
            best[name] = max(best[name], count / (time.perf_counter() - start))
    return best


def small_images(count: int) -> ArraySource:
    rng = np.random.default_rng(0)
    walk = rng.normal(size=(2048, 3, 32, 32)).cumsum(2).cumsum(3)
    low, high = walk.min((1, 2, 3), keepdims=True), walk.max((1, 2, 3), keepdims=True)
    images = np.resize(((walk - low) / (high - low) * 255).astype(np.uint8), (count, 3, 32, 32))
    keys = [f"train/{row:05d}" for row in range(count)]
    return ArraySource(name="small", images=images, labels=np.zeros(count, np.int64), keys=keys, classes=["a", "b"])


def jpeg_files(count: int) -> EncodedSource:
    rng = np.random.default_rng(0)
    files: list[bytes] = []
    for row in range(count):
        photograph = load_sample_images().images[row % 2]
        top, left = rng.integers(0, 427 - 375), rng.integers(0, 640 - 500)
        file = io.BytesIO()
        Image.fromarray(photograph[top : top + 375, left : left + 500]).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    keys = [f"n{row:08d}.JPEG" for row in range(count)]
    return EncodedSource(name="jpeg", files=files, labels=np.zeros(count, np.int64), keys=keys, classes=["a", "b"])


class OneByOne:
    """A source whose decoded images are given one by one: the per-sample path."""

    def __init__(self, source: ArraySource) -> None:
        self.keys, self.labels, self.classes, self.digest = source.keys, source.labels, source.classes, source.digest
        self._source = source

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        return self._source[row]


def randomness(source: FullSource, spec: str) -> tuple[float, float]:
    """Microseconds an image: of deriving its parameters, and of rendering it, one by one in batches of 64."""
    recipe = open_recipe(spec, 32, 32)
    renderer = ViewRenderer(source, recipe, 0)
    hashes = hash_keys(source.keys)[:64]
    (request,) = requests_for(0, np.arange(64), 64)
    best = {"derive": np.inf, "render": np.inf}
    for _ in range(20):
        for name, run in {
            "derive": lambda: recipe.words(streams(0, "view", 0, hashes)),
            "render": lambda: renderer[request],
        }.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], (time.perf_counter() - start) / 64 * 1e6)
    return best["derive"], best["render"]


def png_files(images: np.ndarray) -> EncodedSource:
    """Of uint8 [row, 3, height, width]."""
    files: list[bytes] = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(file, "PNG")
        files.append(file.getvalue())
    keys = [f"{row:05d}.png" for row in range(len(files))]
    return EncodedSource(name="png", files=files, labels=np.zeros(len(files), np.int64), keys=keys, classes=["a", "b"])


def checking(source: EncodedSource, repeats: int) -> dict[str, float]:
    """Microseconds of this process an image: of decoding it, alone, with its comparison, and with taking its check."""
    renderer = ViewRenderer(source, open_recipe("none", 32, 32), 0)
    parts = [request.rows for request in requests_for(0, np.arange(len(source)), 64)]
    checks = np.concatenate([check_images(renderer.decode(rows), len(rows)) for rows in parts])
    comparison = Comparison(source.keys, [checks], strict=True)

    def compare(rows: np.ndarray) -> None:
        for row, image in zip(rows.tolist(), renderer.decode(rows), strict=True):
            comparison.is_exact(row, image)

    def decode(rows: np.ndarray) -> None:
        for _ in zip(rows.tolist(), renderer.decode(rows), strict=True):
            pass

    runs: dict[str, Callable[[np.ndarray], object]] = {
        "alone": decode,
        "compared": compare,
        "taken": lambda rows: check_images(renderer.decode(rows), len(rows)),
    }
    best = dict.fromkeys(runs, np.inf)
    for rows in parts * repeats:
        for name, run in runs.items():
            start = time.process_time()
            run(rows)
            best[name] = min(best[name], (time.process_time() - start) / len(rows) * 1e6)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=int, default=50_000, help="small images")
    parser.add_argument("--jpegs", type=int, default=512, help="JPEG files")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    console, batch = Console(highlight=False, width=120), options.batch_size

    small = small_images(options.small)
    pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in small.images]
    tensors = torch.from_numpy(small.images)
    crop_flip = [v2.RandomCrop(32, 4), v2.RandomHorizontalFlip()]
    strong = [*crop_flip, v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)]
    peers: dict[str, dict[str, Callable[[], int]]] = {
        "crop-flip": {
            "v2 on PIL": peer(pictures, v2.Compose([*crop_flip, v2.PILToTensor()]), batch),
            "v2 on tensors": peer(tensors, v2.Compose(crop_flip), batch),
        },
        "cifar-strong": {
            "v2 on PIL": peer(pictures, v2.Compose([*strong, v2.PILToTensor(), Cutout()]), batch),
            "v2 on tensors": peer(tensors, v2.Compose([*strong, Cutout()]), batch),
        },
    }
    table = Table("views of 32x32 in memory", "images/s", "of the faster peer", title=f"{options.small} images, uint8")
    for recipe, runs in peers.items():
        found = rates(runs | {"gdkd-cache": ours(small, recipe, batch)}, options.repeats)
        faster = max(found[name] for name in runs)
        for name, rate in found.items():
            table.add_row(f"{recipe}, {name}", f"{rate:,.0f}", f"{rate / faster:.1f}x")
    console.print(table)

    jpegs = jpeg_files(options.jpegs)

    def decode(file: bytes | object) -> Image.Image:
        assert isinstance(file, bytes)
        return Image.open(io.BytesIO(file)).convert("RGB")

    imagenet = [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip()]
    read = v2.Lambda(decode)
    runs = {
        "v2 on PIL, two workers": peer(jpegs.files, v2.Compose([read, *imagenet, v2.PILToTensor()]), 64),
        "v2 on tensors, two workers": peer(jpegs.files, v2.Compose([read, v2.PILToTensor(), *imagenet]), 64),
        "one view at a time": ours(jpegs, "imagenet", 64),
        "8 views of one decoding": ours(jpegs, "imagenet", 32, tuple(range(8))),
    }
    found = rates(runs, options.repeats)
    table = Table("views of 500x375 JPEG files", "views/s", "of one at a time", title="imagenet recipe, 224x224, uint8")
    for name, rate in found.items():
        table.add_row(name, f"{rate:,.0f}", f"{rate / found['one view at a time']:.2f}x")
    console.print(table)

    table = Table("checks of decoded images", "decoded in", "compared", "taken", title="microseconds an image")
    for name, source in {"500x375 JPEG": jpegs, "32x32 PNG": png_files(small.images[:1024])}.items():
        cost = checking(source, options.repeats)
        shares = (f"{cost[name] / cost['alone'] - 1:+.1%}" for name in ("compared", "taken"))
        table.add_row(name, f"{cost['alone']:.1f}", *shares)
    console.print(table)

    torch.set_num_threads(1)
    table = Table("randomness of an image", "derived in", "rendered in", "share", title="one by one, microseconds")
    for name, (derive, render) in {
        "crop-flip 32x32": randomness(settle(OneByOne(small)), "crop-flip"),
        "imagenet 224x224, from JPEG": randomness(jpegs, "imagenet"),
    }.items():
        table.add_row(name, f"{derive:.2f}", f"{render:.1f}", f"{derive / render:.2%}")
    console.print(table)


if __name__ == "__main__":
    main()
