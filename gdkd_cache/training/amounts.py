"""What options say in a text: so many steps or minutes, bytes, sides, and values that change over the epochs."""

import itertools
import math
import re
from dataclasses import dataclass

from gdkd_cache.errors import UsageError
from gdkd_cache.limits import LARGEST_FACTOR, LARGEST_SIDE, MOST_EPOCHS
from gdkd_cache.schema import short

_SECONDS = {"s": 1, "min": 60, "h": 3600}
_BYTES = {"B": 1, **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)}}
_AMOUNT = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)([A-Za-z]*)")
_SIDES = re.compile(r"(\d{1,5})x(\d{1,5})")
_POINT = re.compile(r"(\d{1,9}):([^:]+)")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """How far apart things are done; one of the two is there. Attributes: steps; seconds."""

    steps: int | None = None
    seconds: float | None = None


def parse_interval(what: str, text: str) -> Interval:
    """Read `500` (steps), `90s`, `10min` or `1h`.

    Raises:
        UsageError: anything else, or nothing at all.
    """
    found = _AMOUNT.fullmatch(text)
    number, unit = (found[1], found[2]) if found else ("0", "")
    if unit in _SECONDS and float(number) > 0:
        return Interval(seconds=float(number) * _SECONDS[unit])
    if not unit and number.isdecimal() and int(number) > 0:
        return Interval(steps=int(number))
    raise UsageError(f"{what} is {short(text)}; it must be a number of steps, as in 500, or a time: 90s, 10min, 1h")


def parse_bytes(what: str, text: str) -> int:
    """Read `4GiB`, `1.5GiB`, `512MiB` or plain bytes; above 0.

    Raises:
        UsageError: anything else.
    """
    found = _AMOUNT.fullmatch(text)
    size = int(float(found[1]) * _BYTES.get(found[2] or "B", 0)) if found else 0
    if size < 1:
        raise UsageError(f"{what} is {short(text)}; it must be a number and one of {', '.join(_BYTES)}, as in 4GiB")
    return size


def parse_sides(what: str, text: str) -> tuple[int, int]:
    """Read `512x1024`: a height and a width in pixels, above 0.

    Raises:
        UsageError: anything else.
    """
    found = _SIDES.fullmatch(text)
    height, width = (int(found[1]), int(found[2])) if found else (0, 0)
    if not (0 < height <= LARGEST_SIDE and 0 < width <= LARGEST_SIDE):
        raise UsageError(f"{what} is {short(text)}; it must be a height and a width in pixels, as in 512x1024")
    return height, width


@dataclass(frozen=True, kw_only=True)
class Course:
    """A value over the epochs: linear between its points, constant before the first and after the last.

    Attributes:
        epochs: of the points, rising, from 1.
        values: at them.
    """

    epochs: tuple[int, ...]
    values: tuple[float, ...]

    def at(self, epoch: int) -> float:
        """The value in an epoch, from 1."""
        import numpy as np  # not for help, which reads this module

        return float(np.interp(epoch, self.epochs, self.values))


def parse_course(what: str, text: str, *, least: float = 0.0) -> Course:
    """Read `EPOCH:VALUE,EPOCH:VALUE`.

    Args:
        what: its name, for messages.
        text: epochs rise and begin with 1 or later.
        least: the smallest value allowed.

    Raises:
        UsageError: anything else, or a value out of range.
    """
    found = [_POINT.fullmatch(part) for part in text.split(",")]
    try:
        points = [(int(one[1]), float(one[2])) for one in found if one is not None]
    except ValueError:
        points = []
    if len(points) < len(found):
        raise UsageError(f"{what} is {short(text)}; it must be EPOCH:VALUE,EPOCH:VALUE, as in 1:0,20:1")
    rising = all(one < other for (one, _), (other, _) in itertools.pairwise(points))
    if not (rising and points[0][0] >= 1 and points[-1][0] <= MOST_EPOCHS):
        raise UsageError(f"{what} is {short(text)}; its epochs must rise, in 1..{MOST_EPOCHS}")
    for epoch, value in points:
        if not (math.isfinite(value) and least <= value <= LARGEST_FACTOR):
            raise UsageError(f"{what}: {value} at epoch {epoch} must be in {least:g}..{LARGEST_FACTOR}")
    return Course(epochs=tuple(epoch for epoch, _ in points), values=tuple(value for _, value in points))
