"""Probes: what detects that the student would see other pixels than the teacher saw.

For 1 row in 64, chosen by its key, and for at least 32 rows: 20 bytes of the decoded image and of each rendered
view, the crc32 of the uint8 bytes and a sketch, 16 fixed +-1 projections, each rounded and kept modulo 256. The
sketches of two renderings estimate the RMS of their difference, which tells rounding (another resize kernel) from
another crop, flip or file; the probe of the decoded image tells another file or decoder from another recipe.

Masks have no rounding: a sketch is moved by a hash of the image's mask, so that another mask gives another sketch.
"""

import zlib
from functools import lru_cache

import numpy as np
from xxhash import xxh3_128_digest

from gdkd_cache.errors import MismatchError
from gdkd_cache.seeding import Words, draw, streams

_ONE_IN = np.uint64(64)
_AT_LEAST = 32
_PROJECTIONS = 16
_BLOCK = 65536
ROUNDING_RMS = 2.0
"""Below this RMS (of 255) a difference is rounding; a shift by a pixel gives more, except in plain images."""


def probed(key_hashes: Words) -> np.ndarray:
    """Which rows are probed: bool [row]; 1 in 64 by its key's hash, and the 32 of the smallest hashes."""
    selected = key_hashes % _ONE_IN == 0
    selected[np.argsort(key_hashes, kind="stable")[:_AT_LEAST]] = True
    return selected


@lru_cache(maxsize=64)
def _signs(block: int) -> np.ndarray:
    """The fixed projections of one block of values: int8 [16, 65536], +1 or -1; one draw has the signs of 4 values."""
    words = draw(streams(0, "probe", block, np.arange(_BLOCK // 4, dtype=np.uint64)), 0)
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")
    return bits.reshape(_BLOCK, _PROJECTIONS).T.astype(np.int8) * 2 - 1


def probe_pixels(pixels: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Probe an image, uint8 [channel, height, width], and its mask if it has one, int16 [height, width]: uint8 [20]."""
    values = np.ascontiguousarray(pixels).ravel()
    # Sums of integers below 2**53 are exact in float64, so the sketch is the same on every machine.
    sketch = np.zeros(_PROJECTIONS)
    for block in range(-(-values.size // _BLOCK)):
        part = values[block * _BLOCK : (block + 1) * _BLOCK].astype(np.float64)
        sketch += _signs(block)[:, : part.size].astype(np.float64) @ part
    levels = (np.rint(sketch / np.sqrt(values.size)).astype(np.int64) % 256).astype(np.uint8)
    checksum = zlib.crc32(values.tobytes())
    if mask is not None:
        own = np.ascontiguousarray(mask, "<i2").tobytes()
        checksum, levels = zlib.crc32(own, checksum), levels + hash_mask(mask, _PROJECTIONS)
    return np.frombuffer(checksum.to_bytes(4, "little") + levels.tobytes(), np.uint8)


def hash_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """A hash of a mask, int16 [height, width], and of its size: uint8 [size]."""
    digest = xxh3_128_digest(np.ascontiguousarray(mask, "<i2").data, mask.shape[0] << 32 | mask.shape[1])
    return np.frombuffer(digest[:size], np.uint8)


def difference(stored: np.ndarray, rendered: np.ndarray) -> float:
    """Estimated RMS of the pixel difference behind two probes, or checks, of images: 0 when their checksums agree.

    A projection of the difference has its RMS as deviation, so 16 estimate it to within a fifth; above about 70 the
    estimate stays there, for differences are known modulo 256 only.

    Args:
        stored, rendered: uint8 [4 + projections] each, a checksum and a sketch.
    """
    if (stored[:4] == rendered[:4]).all():
        return 0.0
    delta = (stored[4:] - rendered[4:]).view(np.int8).astype(np.float64)
    rounding = 1 / 6  # the variance that rounding both sketches adds
    # Different bytes never count as equal, even where all the projections agree.
    return float(np.sqrt(max(np.mean(delta**2) - rounding, 1e-6)))


def refuse_difference(what: str, rms: float, limit: float, why: str, *, strict: bool) -> None:
    """Refuse pixels that are not the teacher's.

    Args:
        what: whose pixels, for the message.
        rms: estimated RMS of their difference, 0 for none.
        limit: below it, a difference is rounding.
        why: what may be the cause.
        strict: also refuse rounding.

    Raises:
        MismatchError: it says what differs, how far, and why.
    """
    if rms >= limit or (rms and strict):
        kind = "different pixels" if rms >= limit else "pixels that differ by rounding"
        raise MismatchError(
            f"replay: {what} has {kind} than the teacher saw (RMS about {rms:.1f} of 255): {why}; "
            "use the images and the settings that the cache was built with"
        )
