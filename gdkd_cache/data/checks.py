"""Checks: what tells that any one image is another than the teacher's, in 8 bytes and little time an image.

Of every decoded image: 4 bytes of the XXH3 hash of its size and all its uint8 bytes, and a coarse sketch of 4, fixed
+-1 projections of at most 256 of its values, evenly apart, each rounded and kept modulo 256. Equal hashes are equal
images. Where they differ, the sketches tell rounding by another decoder from another image. Four projections scatter,
so their bound is thrice that of probes, which stay the sharp instrument for 1 row in 64: rounding of an RMS of 2 is
taken for another image once in 3 million, and another image for rounding once in 5,000 to 30,000 (RMS of 60 to 100);
that is told, and refused where the replay must be strict.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import gcd

import numpy as np
from xxhash import xxh3_64_intdigest

from gdkd_cache.data.probes import difference, refuse_difference
from gdkd_cache.seeding import draw, streams
from gdkd_cache.store.layout import CHECK_BYTES

_PROJECTIONS = CHECK_BYTES - 4
_MOST_VALUES = 256
CHECK_RMS = 6.0
"""Below this estimated RMS (of 255) a difference is taken for rounding."""


@lru_cache(maxsize=1)
def _signs() -> np.ndarray:
    """The fixed projections: float32 [256, 4], +1 or -1; one draw has the signs of 16 values."""
    words = draw(streams(0, "check", 0, np.arange(_MOST_VALUES // 16, dtype=np.uint64)), 0)
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")
    return bits.reshape(_MOST_VALUES, _PROJECTIONS).astype(np.float32) * 2 - 1


@lru_cache(maxsize=1024)
def _stride(size: int) -> int:
    """How far apart the sketched values lie: coprime to the size, so that they are of all channels and columns."""
    stride = -(-size // _MOST_VALUES)
    while gcd(stride, size) > 1:
        stride += 1
    return stride


def _hash(image: np.ndarray) -> int:
    height, width, _ = image.shape
    return xxh3_64_intdigest(image.data, height << 32 | width) & 0xFFFFFFFF


class Checks:
    """The checks of some images, which are seen one at a time.

    Images are uint8 [height, width, 3], C-contiguous.
    """

    def __init__(self, count: int) -> None:
        self._hashes = np.zeros(count, "<u4")
        self._values = np.zeros((count, _MOST_VALUES), np.uint8)
        self._sizes = np.ones(count)

    def see(self, position: int, image: np.ndarray) -> None:
        """Take the image at a position."""
        values = image.ravel()[:: _stride(image.size)]
        self._hashes[position] = _hash(image)
        self._values[position, : len(values)] = values
        self._sizes[position] = len(values)

    def finish(self) -> np.ndarray:
        """The checks: uint8 [image, 8]."""
        # Sums of integers below 2**24 are exact in float32, so the sketch is the same on every machine.
        sums = (self._values.astype(np.float32) @ _signs()).astype(np.float64)
        levels = np.rint(sums / np.sqrt(self._sizes)[:, None]).astype(np.int64).astype(np.uint8)  # modulo 256
        return np.concatenate([self._hashes.view(np.uint8).reshape(-1, 4), levels], axis=1)


def check_images(images: Iterable[np.ndarray], count: int) -> np.ndarray:
    """The checks of `count` images, each uint8 [height, width, 3] and C-contiguous: uint8 [image, 8]."""
    checks = Checks(count)
    for position, image in enumerate(images):
        checks.see(position, image)
    return checks.finish()


class Comparison:
    """What a source's images must be: those that one teacher saw, or several."""

    def __init__(self, keys: Sequence[str], checks: Sequence[np.ndarray], *, strict: bool) -> None:
        """Compare nothing yet.

        Args:
            keys: of the source.
            checks: of each teacher's images, uint8 [source row, 8].
            strict: also refuse a difference by rounding.
        """
        self._keys, self._strict = keys, strict
        self._checks = [np.ascontiguousarray(one) for one in checks]
        self._hashes = [one[:, :4].copy().view("<u4")[:, 0] for one in self._checks]

    def is_exact(self, row: int, image: np.ndarray) -> bool:
        """Whether an image, uint8 [height, width, 3] and C-contiguous, is the row's to the bit, or else by rounding.

        Raises:
            MismatchError: it is another, or differs by rounding where that is refused; it names the key.
        """
        found = _hash(image)
        for hashes in self._hashes:
            if hashes.item(row) != found:
                return self._is_rounding(row, image)
        return True

    def _is_rounding(self, row: int, image: np.ndarray) -> bool:
        (check,) = check_images([image], 1)
        rms = max(difference(checks[row], check) for checks in self._checks)
        what, why = f"the decoded image of {self._keys[row]!r}", "its file or its decoder is another"
        refuse_difference(what, rms, CHECK_RMS, why, strict=self._strict)
        return False
