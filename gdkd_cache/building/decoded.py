"""What a cache keeps of the decoded images themselves: their probes, checks and sizes."""

import numpy as np

from gdkd_cache.data.images.unrendered import DecodedImages
from gdkd_cache.data.loader import ViewLoader
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.source import FullSource
from gdkd_cache.data.views import ViewRenderer, requests_for
from gdkd_cache.store.layout import PROBE_BYTES

_ROWS_AT_ONCE = 64


def probe_sources(source: FullSource, recipe: Recipe, seed: int, rows: np.ndarray, num_workers: int) -> np.ndarray:
    """Probes of the decoded images of some rows: uint8 [row, 20], zeros for the others."""
    renderer = ViewRenderer(source, recipe, seed, probe_rows=np.ones(len(source), bool), probe_sources=True)
    probes = np.zeros((len(source), PROBE_BYTES), np.uint8)
    for batch in ViewLoader(renderer, num_workers=num_workers).stream(requests_for(0, rows, _ROWS_AT_ONCE)):
        assert batch.source_probes is not None
        probes[batch.rows] = batch.source_probes
    return probes


def source_checks(
    source: FullSource, recipe: Recipe, rows: np.ndarray, num_workers: int
) -> tuple[np.ndarray, np.ndarray]:
    """Checks and sizes of the decoded images of some rows, int64 [n]: uint8 [n, 8] and uint16 [n, 2]."""
    loader = ViewLoader(DecodedImages(source, recipe), num_workers=num_workers)
    checks, sizes = [], []
    for batch in loader.stream(requests_for(0, rows, _ROWS_AT_ONCE)):
        checks.append(batch.source_checks)
        sizes.append(batch.sizes)
    return np.concatenate(checks), np.concatenate(sizes)
