"""How many threads some work runs in."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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


def one_worker(name: str) -> ThreadPoolExecutor:
    """An executor of one thread that does its torch work alone, beside the main thread.

    Had it threads of its own to help it, the main thread's would find more threads than cores, and wait in system calls
    rather than spin at the end of each operation: training ran at half to a quarter of its speed.
    """
    torch.get_num_threads()  # settles this thread's own number, before the worker's becomes that of new threads
    return ThreadPoolExecutor(1, thread_name_prefix=name, initializer=_alone)


def _alone() -> None:
    torch.get_num_threads()  # a new thread takes over a number at its first use of it: not after what follows
    torch.set_num_threads(1)
