"""Probes: what detects that the student would see other pixels than the teacher saw.

For 1 row in 64, chosen by its key, 20 bytes of the rendered view: the crc32 of its uint8 bytes, and a sketch, 8
fixed +-1 projections in float16. The sketches of two renderings estimate the RMS of their difference, which tells
rounding (another resize kernel) from another crop, flip or file.
"""

import zlib
from functools import lru_cache

import numpy as np

from gdkd_cache.seeding import Words, draw, streams
from gdkd_cache.store import PROBE_BYTES

_ONE_IN = np.uint64(64)
_PROJECTIONS = 8
ROUNDING_RMS = 2.0
"""Below this RMS (of 255) a difference is rounding: kernels gave at most 1.6, a shift by a pixel at least 2.9."""


def probed(key_hashes: Words) -> np.ndarray:
    """Which rows are probed: bool [row]; where no key's hash selects its row, the row of the smallest hash is."""
    selected = key_hashes % _ONE_IN == 0
    if not selected.any():
        selected = key_hashes == key_hashes.min()
    return selected


@lru_cache(maxsize=4)
def _signs(numel: int) -> np.ndarray:
    """The fixed projections for views of `numel` values: float64 [8, numel], +1 or -1."""
    state = streams(0, "probe", 0, np.arange(_PROJECTIONS * numel, dtype=np.uint64))
    return (draw(state, 0) >> np.uint64(63)).astype(np.float64).reshape(_PROJECTIONS, numel) * 2 - 1


def probe_pixels(pixels: np.ndarray, selected: np.ndarray) -> np.ndarray:
    """Probe the selected rows of rendered views.

    Args:
        pixels: uint8 [n, channel, height, width].
        selected: bool [n].

    Returns:
        uint8 [n, 20]; zeros where not selected.
    """
    probes = np.zeros((len(pixels), PROBE_BYTES), np.uint8)
    for row in np.flatnonzero(selected):
        view = pixels[row]
        checksum = zlib.crc32(view.tobytes())
        # Sums of integers below 2**53 are exact in float64, so the sketch is the same on every machine.
        sketch = (_signs(view.size) @ view.ravel().astype(np.float64)) / np.sqrt(view.size)
        probes[row, :4] = np.frombuffer(checksum.to_bytes(4, "little"), np.uint8)
        probes[row, 4:] = sketch.astype("<f2").view(np.uint8)
    return probes


def difference(stored: np.ndarray, rendered: np.ndarray) -> float:
    """Estimated RMS of the pixel difference behind two probes (uint8 [20] each): 0 when their checksums agree."""
    if (stored[:4] == rendered[:4]).all():
        return 0.0
    with np.errstate(invalid="ignore"):
        delta = stored[4:].copy().view("<f2").astype(np.float64) - rendered[4:].copy().view("<f2").astype(np.float64)
    if not np.isfinite(delta).all():  # a sketch that no build writes
        return np.inf
    # Different bytes never count as equal, even where all the projections agree.
    return max(float(np.sqrt(np.mean(delta**2))), 1e-6)
