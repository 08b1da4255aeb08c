"""Images in folders beside the same in memory."""

from collections.abc import Callable, Iterator

from benches.pictures import small_images, write_folders, write_shards
from benches.timing import Bench, Figure, ratios
from gdkd_cache import open_source
from gdkd_cache.data.images.memory import decoded_once
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.source import FullSource
from gdkd_cache.training.batches import rendered_batches


def imagefolder(bench: Bench) -> Iterator[Figure]:
    """An epoch of small PNG files in folders, held as a training holds them, against the same of shards in memory."""
    source = small_images(256 if bench.smoke else 20_000, 10)
    write_folders(bench.folder / "folders", source)
    shards = write_shards(bench.folder / "shards", source, 2)
    recipe = open_recipe("crop-flip", 32, 32)
    opened = {"imagefolder": open_source(f"imagefolder:{bench.folder}/folders"), "wds": open_source(f"wds:{shards}")}

    def epochs(source: FullSource) -> Callable[[], object]:
        batches = rendered_batches(
            decoded_once(source, recipe), recipe, view_seed=0, views=None, batch_size=256, seed=0, num_workers=0,
            device=bench.device,
        )  # fmt: skip
        return lambda: sum(len(images) for images, *_ in batches(0))

    size = f"{len(source):,} of 32x32 PNG files in folders"
    times = bench.seconds({name: epochs(source) for name, source in opened.items()})
    for_epochs = ratios(times["imagefolder"], times["wds"])
    yield Figure(what=f"an epoch of {size}", against="wds: in memory", ratios=for_epochs, goal="<= 1.05")
    times = bench.seconds({name: lambda it=source: decoded_once(it, recipe) for name, source in opened.items()})
    once = ratios(times["imagefolder"], times["wds"])
    yield Figure(what=f"reading and decoding {size}, once", against="wds: in memory", ratios=once)
