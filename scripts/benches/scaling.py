"""How time and memory grow with the size of what is cached."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from benches.process import measured
from benches.timing import Bench, Figure


@dataclass(frozen=True)
class _Size:
    views: int
    rows: int
    classes: int
    codec: str


_SIZES = {
    "views": [_Size(views, 32_768, 10, "transform:step=1") for views in (2, 8, 32)],
    "rows": [_Size(1, rows, 10, "transform:step=1") for rows in (10**3, 10**4, 10**5, 10**6)],
    "classes": [_Size(1, 4096, classes, "topk") for classes in (10, 100, 1000, 21841)],
}
_SMALLEST = {"views": [_Size(views, 512, 10, "topk") for views in (1, 2)]}


def scale(bench: Bench) -> Iterator[Figure]:
    """Exponents of time and memory of building and of training, without a student, over views, rows and classes.

    Each size is measured once, in a process of its own. Where rows or classes are more, their keys, labels or logits
    are; more views shall take no more memory.
    """
    for axis, sizes in (_SMALLEST if bench.smoke else _SIZES).items():
        found = [measured("measure_scale", size.views, size.rows, size.classes, size.codec) for size in sizes]
        numbers = [getattr(size, axis) for size in sizes]
        over = f"{numbers[0]:,} to {numbers[-1]:,} {axis}"
        for task in ("build", "train"):
            times, most = ([one[f"{task} {what}"] for one in found] for what in ("seconds", "bytes"))
            yield Figure(
                what=f"{task}: exponent of its time", against=over, ratios=[_exponent(numbers, times)], goal="<= 1.05"
            )
            if axis == "views":
                what, against, goal = f"{numbers[-1]} views", f"{numbers[0]} views", "<= 1.1"
                yield Figure(
                    what=f"{task}: most memory, {what}", against=against, ratios=[most[-1] / most[0]], goal=goal
                )
            else:
                what, goal = f"{task}: exponent of its most memory", "<= 1.05"
                yield Figure(what=what, against=over, ratios=[_exponent(numbers, most)], goal=goal)


def _exponent(sizes: Sequence[int], found: Sequence[float]) -> float:
    """The slope of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(found), 1)[0])
