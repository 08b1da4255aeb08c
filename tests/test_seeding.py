"""The streams are part of the format: known answers, an obvious reference, and independence."""

from hashlib import blake2b

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gdkd_cache.seeding import below, draw, hash_keys, permutation, streams

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _finalise(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


def _reference(seed: int, purpose: str, view: int, key: str, counter: int) -> int:
    """One draw, in Python integers."""

    def hashed(text: str) -> int:
        return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")

    state = _finalise(((seed & _MASK) + _GOLDEN) & _MASK)
    for word in (hashed(purpose), view & _MASK, hashed(key)):
        state = _finalise(((state ^ word) + _GOLDEN) & _MASK)
    return _finalise((state + (counter + 1) * _GOLDEN) & _MASK)


def test_known_answers() -> None:
    """A change of these numbers makes every existing cache unreadable: bump the format instead."""
    state = streams(0, "view", 3, hash_keys(["digits/0000", "n01440764/n01440764_10026.JPEG"]))
    assert [hex(int(x)) for x in draw(state, 0)] == ["0xa62b2cb7cb9f6343", "0xfbde4d1b7ed820ec"]
    assert [hex(int(x)) for x in draw(state, 17)] == ["0x46a7e8e6f1863e8a", "0xed0d672a641299d7"]
    assert below(draw(state, 0), 9).tolist() == [5, 8]
    assert permutation(7, "order", 1, 10).tolist() == [2, 9, 5, 7, 4, 0, 1, 8, 6, 3]


@settings(deadline=None)
@given(
    st.integers(-(2**63), 2**64), st.text(max_size=8), st.integers(0, 2**40), st.text(max_size=12),
    st.integers(0, 1000), st.integers(1, 2**31),
)  # fmt: skip
def test_equals_the_reference(seed: int, purpose: str, view: int, key: str, counter: int, bound: int) -> None:
    state = streams(seed, purpose, view, hash_keys([key]))
    expected = _reference(seed, purpose, view, key, counter)
    assert int(draw(state, counter)[0]) == expected
    assert int(below(draw(state, counter), bound)[0]) == (expected >> 32) * bound >> 32


def test_neighbours_share_nothing() -> None:
    """Neighbouring seeds, views, purposes and keys: no repeated draw, and no correlation of the bits."""
    keys = hash_keys(f"key/{i}" for i in range(4096))
    columns = [
        draw(streams(seed, purpose, view, keys), counter)
        for seed in (0, 1, 2**32)
        for purpose in ("view", "order")
        for view in (0, 1, 2**32)
        for counter in (0, 1)
    ]
    everything = np.concatenate(columns)
    assert len(np.unique(everything)) == len(everything)
    signs = np.stack([(column >> np.uint64(63)).astype(np.float64) * 2 - 1 for column in columns])
    correlation = signs @ signs.T / signs.shape[1] - np.eye(len(columns))
    assert np.abs(correlation).max() < 6 / np.sqrt(signs.shape[1])


def test_permutation() -> None:
    order = permutation(0, "order", 0, 1000)
    assert sorted(order.tolist()) == list(range(1000))
    assert not np.array_equal(order, permutation(0, "order", 1, 1000))
    assert not np.array_equal(order, permutation(1, "order", 0, 1000))
