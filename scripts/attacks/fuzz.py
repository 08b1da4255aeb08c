"""Damage at random to bytes and to JSON."""

import copy
import random
from typing import Any

NUMBERS = (0, -1, 1, 255, 2**31, 2**63, -(2**63), 10**23, 10**60, 1e308, -1e-320, float("nan"), float("inf"))
TEXTS = (
    "", " ", "a", "evil:make", "evil:Thing", "os:system", "compat:evil:make", "../../outside/precious.txt",
    "/etc/passwd", "x" * 5000, "\x1b[2J\n31 objects checked, whole", "\u202egnp", "\ud800", "{", "%s{0}", "1e999",
)  # fmt: skip


def deep(depth: int = 5000) -> str:
    """JSON (and a TOML value) of many lists in each other."""
    return "[" * depth + "]" * depth


def any_value(rng: random.Random) -> Any:
    """A JSON value of an unexpected kind."""
    return rng.choice((rng.choice(NUMBERS), rng.choice(TEXTS), None, True, [], {}, [None], {"a": 1}, [[["x"]]]))


def fuzz(rng: random.Random, data: bytes) -> bytes:
    """Bytes with one to four damages: flipped, cut, removed, doubled, set alike, overwritten with numbers or parts."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not out:
            break
        # Heads matter most: half of the damage is in the first bytes.
        start = rng.randrange(min(len(out), rng.choice((16, 64, 512, len(out)))))
        length = min(rng.choice((1, 1, 2, 4, 8, 100)), len(out) - start)
        what = rng.randrange(7)
        if what == 0:
            out[start] ^= 1 << rng.randrange(8)
        elif what == 1:
            del out[start : None if rng.random() < 0.3 else start + length]
        elif what == 2:
            out[start:start] = out[start : start + length] * rng.choice((1, 50))
        elif what == 3:
            out[start : start + length] = bytes([rng.choice((0, 0xFF, 0x20, 0x80))]) * length
        elif what == 4:
            out[start : start + length] = rng.randbytes(length)
        elif what == 5:
            number = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63))
            out[start : start + 8] = number.to_bytes(8, rng.choice(("little", "big")))
        else:
            other = rng.randrange(len(out))
            out[start : start + length] = out[other : other + length]
    return bytes(out)


def mutate(rng: random.Random, value: Any) -> Any:
    """JSON with one to three of its values replaced, removed or added."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        parents = list(_parents(value))
        parent = rng.choice(parents)
        names = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        what = rng.randrange(4)
        if what == 0 and isinstance(parent, dict):
            parent[rng.choice(TEXTS)] = any_value(rng)
        elif what == 1 and names:
            del parent[rng.choice(names)]
        elif names:
            parent[rng.choice(names)] = any_value(rng)
    return value


def _parents(value: Any) -> Any:
    if isinstance(value, dict | list):
        yield value
        for child in value.values() if isinstance(value, dict) else value:
            yield from _parents(child)
