"""How many threads some work runs in."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def in_threads(number: int) -> Iterator[None]:
    """Run the block's CPU work in so many threads; other Python threads keep theirs."""
    before = torch.get_num_threads()
    if before != number:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        if before != number:
            torch.set_num_threads(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run the block's CPU work in one thread: its many small steps lose more to waiting than a second one gains.

    It also makes sums independent of the number of threads.
    """
    with in_threads(1):
        yield
