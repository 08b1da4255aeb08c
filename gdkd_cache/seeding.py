"""Counter-based randomness: `(seed, purpose, view, key)` names a stream, draw `j` of it is random access.

Each word is absorbed in turn by the splitmix64 finaliser (Steele, Lea, Flood, OOPSLA 2014), so the same
address gives the same bits on every machine, in any order, for any batch. Keys enter as the first 8 bytes
of their BLAKE2b hash. The known-answer vectors in `tests/test_seeding.py` are part of the cache format.
"""

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)


def _finalise(z: Words) -> Words:
    z = (z ^ (z >> np.uint64(30))) * _MULTIPLY_1
    z = (z ^ (z >> np.uint64(27))) * _MULTIPLY_2
    return z ^ (z >> np.uint64(31))


def _absorb(state: Words, word: Words) -> Words:
    return _finalise((state ^ word) + _GOLDEN)


def _word(value: int) -> Words:
    # Arrays of one element, not scalars: numpy warns when a scalar product wraps, and wrapping is wanted.
    return np.array([value % 2**64], np.uint64)


def hash_keys(keys: Iterable[str]) -> Words:
    """Hash key strings to 64-bit words: BLAKE2b with an 8-byte digest, read as little-endian.

    Returns:
        uint64 [row].
    """
    digests = b"".join(blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def streams(seed: int, purpose: str, view: int, key_hashes: Words) -> Words:
    """Open one stream per key: the state that `draw` and `draws` read from.

    Args:
        seed: any integer; taken modulo 2**64.
        purpose: what the draws are for, so that two uses of one address never share bits.
        view: view number.
        key_hashes: uint64 [row], from `hash_keys`.

    Returns:
        uint64 [row].
    """
    state = _finalise(_word(seed) + _GOLDEN)
    state = _absorb(state, hash_keys([purpose]))
    state = _absorb(state, _word(view))
    return _absorb(state, key_hashes)


def draw(state: Words, counter: int) -> Words:
    """Draw number `counter` (from 0) of every stream: uint64 [row], uniform over all 64-bit words."""
    return _finalise(state + _word(counter + 1) * _GOLDEN)


def draws(state: Words, counters: Sequence[int]) -> Words:
    """Several draws of every stream at once: uint64 [row, counter]."""
    return _finalise(state[:, None] + np.array([counter + 1 for counter in counters], np.uint64) * _GOLDEN)


def below(words: Words, bound: int | np.ndarray) -> npt.NDArray[np.int64]:
    """Turn draws into integers in [0, bound), 1 <= bound <= 2**31: int64, of the shape of the words.

    Multiply-shift of a word's upper 32 bits; the bias is below bound / 2**32.
    """
    return (((words >> np.uint64(32)) * np.asarray(bound, np.uint64)) >> np.uint64(32)).astype(np.int64)


def permutation(seed: int, purpose: str, epoch: int, length: int) -> npt.NDArray[np.int64]:
    """A permutation of `range(length)` that depends on its arguments alone: int64 [length]."""
    state = streams(seed, purpose, epoch, np.arange(length, dtype=np.uint64))
    return np.argsort(draw(state, 0), kind="stable")
