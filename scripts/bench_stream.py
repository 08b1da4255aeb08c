"""What logits cost a stream of images: scripts/bench_stream.py 'data/train-{000000..000003}.tar'

Loaders over the same shards with as many workers, timed in turn, the best of each compared: the images alone, the
same with logits from a Zarr cache and from sidecars, and plain webdataset with torchvision's transforms.
"""

import argparse
import io
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from webdataset.compat import WebDataset

from gdkd_cache import open_cache, open_source
from gdkd_cache.building.build import build
from gdkd_cache.building.options import BuildOptions
from gdkd_cache.data.loader import ViewLoader
from gdkd_cache.data.order import epoch_requests
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.shards.source import ShardSource
from gdkd_cache.data.views import ViewRenderer
from gdkd_cache.models.build import build_model
from gdkd_cache.models.network import Network
from gdkd_cache.models.normalization import normalize_pixels
from gdkd_cache.sharing.convert import to_sidecars
from gdkd_cache.store.facts import TeacherFacts

VIEWS = 4
RECIPE = "crop-flip:size=32,padding=4"


def make_caches(folder: Path, source: ShardSource) -> tuple[Path, Path]:
    """A cache of an untrained teacher, its logits spread like a trained one's, and its sidecars."""
    torch.manual_seed(0)
    model = build_model("cnn-s", len(source.classes)).eval()
    with torch.no_grad():
        for parameter in list(model.parameters())[-2:]:
            parameter.mul_(10)
    statistics = {"mean": source.mean, "std": source.std}
    teacher = Network(
        model=model,
        **statistics,
        device=torch.device("cpu"),
        precision="float32",
        description=TeacherFacts(name="untrained"),
    )
    zarr, sidecars = folder / "cache.zarr", folder / "sidecars"
    build(BuildOptions(out=zarr, num_views=VIEWS, recipe=RECIPE, codec="transform:step=1"), source, teacher)
    to_sidecars(zarr, sidecars, source)
    return zarr, sidecars


def with_logits(cache: Path, source: ShardSource, batch_size: int, workers: int) -> Callable[[int], int]:
    data = open_cache(cache).dataset(source)

    def epoch_images(epoch: int) -> int:
        loader = data.loader(epoch, batch_size=batch_size, shuffle=True, num_workers=workers)
        return sum(len(teacher.logits) for _, _, teacher in loader)

    return epoch_images


def images_alone(source: ShardSource, batch_size: int, workers: int) -> Callable[[int], int]:
    loader = ViewLoader(ViewRenderer(source, open_recipe(RECIPE, 32, 32), 0), num_workers=workers)

    def epoch_images(epoch: int) -> int:
        requests = epoch_requests(source, epoch % VIEWS, epoch=epoch, batch_size=batch_size)
        batches = loader.stream(requests)
        return sum(len(normalize_pixels(batch.pixels, source.mean, source.std)) for batch in batches)

    return epoch_images


def plain_webdataset(source: ShardSource, batch_size: int, workers: int) -> Callable[[int], int]:
    to_view = v2.Compose([v2.RandomCrop(32, 4), v2.RandomHorizontalFlip(), v2.PILToTensor()])

    def sample(members: dict[str, Any]) -> tuple[torch.Tensor, int]:
        image = next(members[name] for name in ("png", "jpg", "jpeg") if name in members)
        return to_view(Image.open(io.BytesIO(image)).convert("RGB")), int(members["cls"])

    shards = WebDataset([str(path) for path in source.shards], shardshuffle=100, empty_check=False)
    samples = shards.shuffle(2000).map(sample).batched(batch_size, partial=True)
    # Not forkserver, as ours: webdataset's pipelines and their closures are made to be forked.
    context = "fork" if workers else None
    loader = DataLoader(
        samples,  # pyright: ignore[reportArgumentType]  (an iterable dataset, which its stub does not say)
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=context,
        persistent_workers=workers > 0,
    )

    def epoch_images(_: int) -> int:
        return sum(len(normalize_pixels(torch.as_tensor(pixels), source.mean, source.std)) for pixels, _ in loader)

    return epoch_images


def rates(runs: dict[str, Callable[[int], int]], repeats: int) -> dict[str, float]:
    """Images a second of each, the best of several epochs in turn; the first epoch starts the workers."""
    best = dict.fromkeys(runs, 0.0)
    epochs = {name: count() for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            epoch = next(epochs[name])
            start = time.perf_counter()
            images = run(epoch)
            if repeat:
                best[name] = max(best[name], images / (time.perf_counter() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", help="images of one size, 32x32 or larger; braces and wildcards are fine")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "unclosed file")  # webdataset leaves its shards open
    source = open_source(f"wds:{options.shards}", stream=True)
    assert isinstance(source, ShardSource)
    loading = (source, options.batch_size, options.workers)
    with tempfile.TemporaryDirectory() as folder:
        zarr, sidecars = make_caches(Path(folder), source)
        alone = "images alone"
        found = rates(
            {
                "plain webdataset, torchvision": plain_webdataset(*loading),
                alone: images_alone(*loading),
                "with logits, Zarr": with_logits(zarr, *loading),
                "with logits, sidecars": with_logits(sidecars, *loading),
            },
            options.repeats,
        )
    table = Table("streamed", "images/s", "of images alone", title=f"{len(source)} images, {options.workers} workers")
    for name, rate in found.items():
        table.add_row(name, f"{rate:,.0f}", f"{rate / found[alone]:.3f}")
    Console(highlight=False, width=100).print(table)


if __name__ == "__main__":
    main()
