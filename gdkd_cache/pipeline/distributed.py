"""The process group of the ranks that torchrun started."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import distributed

from gdkd_cache.errors import GdkdCacheError
from gdkd_cache.ranks import this_rank

Made = TypeVar("Made")


@contextmanager
def process_group(device: torch.device) -> Iterator[bool]:
    """Have torch.distributed initialised in the block where there are several ranks; yields whether there are.

    A group that the caller has made is taken as it is.

    Raises:
        GdkdCacheError: another rank stopped, and the group with it.
    """
    if distributed.is_initialized() or this_rank().world_size == 1:
        yield distributed.is_initialized()
        return
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield True
    except distributed.DistError:
        raise GdkdCacheError("another rank stopped, and this one with it; the other's message says why") from None
    finally:
        distributed.destroy_process_group()


def rank_zero_first(make: Callable[[], Made]) -> Made:
    """Call `make` in rank 0, and only when that is done in the others; in a process group, or alone."""
    if not distributed.is_initialized():
        return make()
    made = make() if distributed.get_rank() == 0 else None
    distributed.barrier()
    return make() if made is None else made
