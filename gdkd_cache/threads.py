"""How many threads some work runs in."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Run the block's CPU work in one thread: its many small steps lose more to waiting than a second one gains.

    It also makes sums independent of the number of threads. Other Python threads keep theirs.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
