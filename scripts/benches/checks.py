"""What the checks of decoded images and the randomness of views cost, beside what they go with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from benches.pictures import photographs, png_files, small_images
from benches.timing import Bench, Figure, ratios
from gdkd_cache.data.checks import Comparison, check_images
from gdkd_cache.data.images.standing import StandingSource, standing_for
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.source import EncodedSource, FullSource
from gdkd_cache.data.views import ViewRenderer, requests_for
from gdkd_cache.seeding import hash_keys, streams
from gdkd_cache.threads import one_thread

_ROWS = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class _OneByOne(StandingSource):
    """Images that lie in memory and are rendered like those that do not."""

    def decode(self, row: int, side: int | None) -> np.ndarray:
        return self.source.decode(row, side)


def checks(bench: Bench) -> Iterator[Figure]:
    """Decoding with a check of each image against decoding alone; rendering a view against drawing its parameters."""
    small, jpegs = small_images(_ROWS), photographs(bench.jpegs, _ROWS)
    for name, source in {"JPEG files": jpegs, "32x32 PNG files": png_files(small)}.items():
        with one_thread():
            times = bench.seconds(_decodings(source))
        for way in ("compared", "taken"):
            what = f"decoding {name}, checks {way}"
            yield Figure(what=what, against="decoding alone", ratios=ratios(times[way], times["alone"]))
    given = standing_for(small)
    given["images"] = None
    one_by_one = _OneByOne(**given)
    for what, source, recipe in (("32x32 in memory", one_by_one, "crop-flip"), ("JPEG files", jpegs, "imagenet")):
        with one_thread():
            times = bench.seconds(_rendering(source, recipe))
        yield Figure(
            what=f"rendering {recipe}, {what}, one by one",
            against="drawing its parameters",
            ratios=ratios(times["render"], times["draw"]),
        )


def _decodings(source: EncodedSource) -> dict[str, Callable[[], object]]:
    renderer = ViewRenderer(source, open_recipe("none", 32, 32), 0)
    rows = np.arange(len(source))
    comparison = Comparison(source.keys, [check_images(renderer.decode(rows), len(rows))], strict=True)

    def compare() -> None:
        for row, image in enumerate(renderer.decode(rows)):
            comparison.is_exact(row, image)

    def decode() -> None:
        for _ in renderer.decode(rows):
            pass

    return {"alone": decode, "compared": compare, "taken": lambda: check_images(renderer.decode(rows), len(rows))}


def _rendering(source: FullSource, spec: str) -> dict[str, Callable[[], object]]:
    recipe = open_recipe(spec, 32, 32)
    renderer, hashes = ViewRenderer(source, recipe, 0), hash_keys(source.keys)
    (request,) = requests_for(0, np.arange(len(source)), len(source))
    return {"draw": lambda: recipe.words(streams(0, "view", 0, hashes)), "render": lambda: renderer[request]}
