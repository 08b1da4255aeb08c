"""Does this source, on this machine, give the pixels that the teacher saw? The probes decide."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from gdkd_cache.data import Recipe, Source, ViewLoader, ViewRenderer, requests_for
from gdkd_cache.data.probes import ROUNDING_RMS, difference, probed
from gdkd_cache.errors import MismatchError
from gdkd_cache.seeding import hash_keys
from gdkd_cache.store import PROBE, CacheReader


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What the probes said.

    Attributes:
        exact: probes whose checksums agree: the pixels are the teacher's to the bit.
        rounding: probes that differ by rounding only (RMS below 2 of 255).
        worst_rms: the largest estimated RMS among them.
    """

    exact: int = 0
    rounding: int = 0
    worst_rms: float = 0.0

    def __str__(self) -> str:
        if not self.exact + self.rounding:
            return "replay not checked: none of these rows is probed (1 row in 64 is)"
        if not self.rounding:
            return f"replay exact: {self.exact} probed views have the teacher's pixels to the bit"
        return (
            f"replay differs by rounding: {self.rounding} of {self.exact + self.rounding} probed views, "
            f"RMS up to {self.worst_rms:.2f} of 255; another version of the image libraries?"
        )


def check_replay(
    reader: CacheReader,
    source: Source,
    cache_rows: np.ndarray,
    keys: list[str],
    views: Iterable[int],
    *,
    limit: int | None = None,
    strict: bool = False,
) -> Replay:
    """Render the probed rows again and compare.

    Args:
        reader: the cache.
        source: the images.
        cache_rows: int64 [source row], the cache row of each of the source's rows.
        keys: the cache's key table.
        views: which views to check.
        limit: at most so many probed rows a view; None checks all.
        strict: also refuse a difference by rounding.

    Raises:
        MismatchError: a view differs, or differs by rounding under `strict`; it names view, key and difference.
    """
    identity = reader.manifest.identity
    assert identity.views is not None
    recipe, seed = Recipe.from_json(identity.views["recipe"]), identity.views["seed"]
    rows = np.flatnonzero(probed(hash_keys(keys))[cache_rows])[:limit]
    loader = ViewLoader(ViewRenderer(source, recipe, seed, probe_rows=np.ones(len(source), bool)))
    exact, rounding, worst = 0, 0, 0.0
    for view in views:
        stored = reader.column(PROBE, view)
        for batch in loader.stream(requests_for(view, rows, 256)):
            assert batch.probes is not None
            for row, rendered in zip(batch.rows.tolist(), batch.probes, strict=True):
                rms = difference(stored[cache_rows[row]], rendered)
                if rms >= ROUNDING_RMS or (rms and strict):
                    kind = "different pixels" if rms >= ROUNDING_RMS else "pixels that differ by rounding"
                    raise MismatchError(
                        f"replay: view {view} of {source.keys[row]!r} renders to {kind} than the teacher saw "
                        f"(RMS about {rms:.1f} of 255, recipe {recipe.name}, seed {seed}): the image, its decoder, "
                        "the recipe or the seed is another; use the images that the cache was built from"
                    )
                exact, rounding, worst = exact + (rms == 0), rounding + (rms > 0), max(worst, rms)
    return Replay(exact=exact, rounding=rounding, worst_rms=worst)
