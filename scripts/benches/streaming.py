"""What logits cost a stream of images from shards."""

import io
import warnings
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from webdataset.compat import WebDataset

from benches.pictures import small_images, write_shards
from benches.timing import Bench, Figure, ratios
from benches.training import teacher_of
from gdkd_cache import open_cache, open_source
from gdkd_cache.building.build import build
from gdkd_cache.building.options import BuildOptions
from gdkd_cache.data.loader import ViewLoader
from gdkd_cache.data.order import epoch_requests
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.shards.source import ShardSource
from gdkd_cache.data.views import ViewRenderer
from gdkd_cache.models.normalization import normalize_pixels
from gdkd_cache.sharing.convert import to_sidecars

_VIEWS, _BATCH = 2, 256
_RECIPE = "crop-flip:size=32,padding=4"


def stream(bench: Bench) -> Iterator[Figure]:
    """Images a second with logits against the images alone, from shards, with two workers; and plain webdataset."""
    warnings.filterwarnings("ignore", "unclosed file")  # webdataset leaves its shards open
    shards = bench.shards or write_shards(bench.folder / "shards", small_images(128 if bench.smoke else 16_384, 10), 4)
    source = open_source(f"wds:{shards}", stream=True)
    assert isinstance(source, ShardSource)
    zarr, sidecars = bench.folder / "cache.zarr", bench.folder / "sidecars"
    options = BuildOptions(
        out=zarr,
        num_views=_VIEWS,
        recipe=_RECIPE,
        codec="transform:step=1",
        num_workers=0 if bench.smoke else None,
        accept_teacher=True,
    )
    some = small_images(64, len(source.classes))
    build(options, source, teacher_of("cnn-s", some, torch.device("cpu")))
    to_sidecars(zarr, sidecars, source)
    workers = 0 if bench.smoke else 2  # they take seconds to start
    times = bench.seconds(
        {
            "alone": _images_alone(source, workers),
            "from Zarr": _with_logits(zarr, source, workers),
            "from sidecars": _with_logits(sidecars, source, workers),
            "webdataset": _plain_webdataset(source, workers),
        },
        least=0,
    )
    for name, what in (
        ("from Zarr", "images a second with logits, from Zarr"),
        ("from sidecars", "images a second with logits, from sidecars"),
        ("webdataset", "images a second of plain webdataset, torchvision's transforms"),
    ):
        yield Figure(what=what, against="images alone", ratios=ratios(times["alone"], times[name]))


def _with_logits(cache: Path, source: ShardSource, workers: int) -> Callable[[], int]:
    data, epochs = open_cache(cache).dataset(source), count()

    def epoch_images() -> int:
        loader = data.loader(next(epochs), batch_size=_BATCH, shuffle=True, num_workers=workers)
        return sum(len(teacher.logits) for _, _, teacher in loader)

    return epoch_images


def _images_alone(source: ShardSource, workers: int) -> Callable[[], int]:
    loader, epochs = ViewLoader(ViewRenderer(source, open_recipe(_RECIPE, 32, 32), 0), num_workers=workers), count()

    def epoch_images() -> int:
        epoch = next(epochs)
        requests = epoch_requests(source, epoch % _VIEWS, epoch=epoch, batch_size=_BATCH)
        batches = loader.stream(requests)
        return sum(len(normalize_pixels(batch.pixels, source.mean, source.std)) for batch in batches)

    return epoch_images


def _plain_webdataset(source: ShardSource, workers: int) -> Callable[[], int]:
    to_view = v2.Compose([v2.RandomCrop(32, 4), v2.RandomHorizontalFlip(), v2.PILToTensor()])

    def sample(members: dict[str, Any]) -> tuple[torch.Tensor, int]:
        image = next(members[name] for name in ("png", "jpg", "jpeg") if name in members)
        return to_view(Image.open(io.BytesIO(image)).convert("RGB")), int(members["cls"])

    shards = WebDataset([str(path) for path in source.shards], shardshuffle=100, empty_check=False)
    samples = shards.shuffle(2000).map(sample).batched(_BATCH, partial=True)
    # Not forkserver, as ours: webdataset's pipelines and their closures are made to be forked.
    loader = DataLoader(
        samples,  # pyright: ignore[reportArgumentType]  (an iterable dataset, which its stub does not say)
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        persistent_workers=workers > 0,
    )
    return lambda: sum(len(normalize_pixels(torch.as_tensor(pixels), source.mean, source.std)) for pixels, _ in loader)
