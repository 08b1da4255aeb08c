"""Checks: what tells that any one image is another than the teacher's, in 8 bytes and little time an image.

Of every decoded image: 4 bytes of the XXH3 hash of its size and all its uint8 bytes, and a coarse sketch of 4, fixed
+-1 projections of at most 256 of its values, evenly apart, each rounded and kept modulo 256. Equal hashes are equal
images. Where they differ, the sketches tell rounding by another decoder from another image. Four projections scatter,
so their bound is thrice that of probes, which stay the sharp instrument for 1 row in 64: rounding of an RMS of 2 is
taken for another image once in 3 million, and another image for rounding once in 5,000 to 30,000 (RMS of 60 to 100);
that is told, and refused where the replay must be strict.

Masks have no rounding: hash and sketch are moved by a hash of the image's mask, and another mask is taken for rounding
once in 40,000.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import gcd

import numpy as np
from xxhash import xxh3_64_intdigest

from gdkd_cache.data.probes import difference, hash_mask, refuse_difference
from gdkd_cache.seeding import draw, streams
from gdkd_cache.store.layout import CHECK_BYTES

_PROJECTIONS = CHECK_BYTES - 4
_MOST_VALUES = 256
Sample = tuple[np.ndarray, np.ndarray | None]
"""An image, uint8 [height, width, 3], and its mask, int16 [height, width], if it has one; both C-contiguous."""
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


def _hash(image: np.ndarray, mask: np.ndarray | None) -> int:
    height, width, _ = image.shape
    own = xxh3_64_intdigest(image.data, height << 32 | width)
    if mask is not None:
        own ^= int.from_bytes(hash_mask(mask, 4).tobytes(), "little")
    return own & 0xFFFFFFFF


class Checks:
    """The checks of some images, which are seen one at a time.

    Images are uint8 [height, width, 3], C-contiguous; their masks int16 [height, width].
    """

    def __init__(self, count: int) -> None:
        self._hashes = np.zeros(count, "<u4")
        self._values = np.zeros((count, _MOST_VALUES), np.uint8)
        self._sizes = np.ones(count)
        self._moved = np.zeros((count, _PROJECTIONS), np.uint8)

    def see(self, position: int, image: np.ndarray, mask: np.ndarray | None) -> None:
        """Take the image at a position, and its mask if it has one."""
        values = image.ravel()[:: _stride(image.size)]
        self._hashes[position] = _hash(image, mask)
        self._values[position, : len(values)] = values
        self._sizes[position] = len(values)
        if mask is not None:
            self._moved[position] = hash_mask(mask, 4 + _PROJECTIONS)[4:]

    def finish(self) -> np.ndarray:
        """The checks: uint8 [image, 8]."""
        # Sums of integers below 2**24 are exact in float32, so the sketch is the same on every machine.
        sums = (self._values.astype(np.float32) @ _signs()).astype(np.float64)
        levels = np.rint(sums / np.sqrt(self._sizes)[:, None]).astype(np.int64).astype(np.uint8)  # modulo 256
        return np.concatenate([self._hashes.view(np.uint8).reshape(-1, 4), levels + self._moved], axis=1)


def check_images(samples: Iterable[Sample], count: int) -> np.ndarray:
    """The checks of `count` images and their masks: uint8 [image, 8]."""
    checks = Checks(count)
    for position, (image, mask) in enumerate(samples):
        checks.see(position, image, mask)
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

    def is_exact(self, row: int, sample: Sample) -> bool:
        """Whether an image and its mask are the row's to the bit, or else by rounding.

        Raises:
            MismatchError: it is another, or differs by rounding where that is refused; it names the key.
        """
        found = _hash(*sample)
        for hashes in self._hashes:
            if hashes.item(row) != found:
                return self._is_rounding(row, sample)
        return True

    def _is_rounding(self, row: int, sample: Sample) -> bool:
        (check,) = check_images([sample], 1)
        rms = max(difference(checks[row], check) for checks in self._checks)
        what = f"the decoded image{'' if sample[1] is None else ' or mask'} of {self._keys[row]!r}"
        why = "its file or its decoder is another"
        refuse_difference(what, rms, CHECK_RMS, why, strict=self._strict)
        return False
