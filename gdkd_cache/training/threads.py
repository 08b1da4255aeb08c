"""In how many threads a training computes on the CPU: measured, as small networks are faster in one."""

import itertools
import logging
import statistics
import time
from collections.abc import Callable

import torch

from gdkd_cache.threads import in_threads

_LOG = logging.getLogger(__name__)
_SECONDS = 0.3
_FASTER = 0.9
"""All threads are taken where a step takes at most this part of its time in one."""


def choose_threads(step: Callable[[], object]) -> int:
    """How many threads a step is fastest in, of one and all that torch has.

    Args:
        step: takes one; what it draws of torch's generator is put back.
    """
    most = torch.get_num_threads()
    if most == 1:
        return 1
    with torch.random.fork_rng([]):
        one, most_seconds = (_seconds(step, threads) for threads in (1, most))
    chosen = most if most_seconds < _FASTER * one else 1
    _LOG.info(
        "a step takes %.1f ms in one thread, %.1f ms in %d: training in %d (--threads says another number)",
        *(1e3 * one, 1e3 * most_seconds, most, chosen),
    )
    return chosen


def _seconds(step: Callable[[], object], threads: int) -> float:
    """The median of some steps, without the first: what else runs on the machine, several threads wait for."""
    times: list[float] = []
    with in_threads(threads):
        begun = time.monotonic()
        for number in itertools.count():
            start = time.perf_counter()
            step()
            if number:
                times.append(time.perf_counter() - start)
                if time.monotonic() - begun > _SECONDS:
                    break
    return statistics.median(times)
