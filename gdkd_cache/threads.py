"""How many threads some work runs in."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Made = TypeVar("Made")


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


def mapped(call: Callable[[Item], Made], items: Iterable[Item], num_threads: int) -> Iterator[Made]:
    """What a call makes of each item, in order; at most twice as many as there are threads wait to be taken."""
    executor = ThreadPoolExecutor(num_threads, thread_name_prefix="mapped")
    begun: deque[Future[Made]] = deque()
    try:
        for item in items:
            begun.append(executor.submit(call, item))
            if len(begun) > 2 * num_threads:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)
