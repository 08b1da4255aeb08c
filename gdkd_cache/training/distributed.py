"""Training in several processes: the process group of the ranks that torchrun started, and what they sum up."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from gdkd_cache.errors import GdkdCacheError
from gdkd_cache.ranks import this_rank


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Have torch.distributed initialised in the block, where torchrun started several ranks; all enter together.

    A group that the caller has made is taken as it is.

    Raises:
        GdkdCacheError: another rank stopped.
    """
    if distributed.is_initialized() or this_rank().world_size == 1:
        yield
        return
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    except RuntimeError as error:
        # An error of gloo's is a plain RuntimeError.
        if isinstance(error, distributed.DistError) or "gloo" in str(error):
            raise GdkdCacheError("another rank stopped, whose message says why; so this one does") from None
        raise
    distributed.destroy_process_group()


def rank_and_size() -> tuple[int, int]:
    """This process's rank and the number of ranks, of the process group; (0, 1) without one."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with gradients that are the mean over all ranks; the model itself where there is one."""
    if rank_and_size()[1] == 1:
        return model
    return DistributedDataParallel(model, [device] if device.type == "cuda" else None)


def sum_over_ranks(values: Tensor) -> Tensor:
    """The element-wise sum over all ranks, in place."""
    if rank_and_size()[1] > 1:
        distributed.all_reduce(values)
    return values


def average_buffers(model: nn.Module) -> None:
    """Give all ranks the mean of their running statistics; between steps, each has those of its own last batch too."""
    size = rank_and_size()[1]
    if size > 1:
        for buffer in model.buffers():
            if buffer.is_floating_point():
                distributed.all_reduce(buffer)
                buffer.div_(size)


def broadcast_buffers(model: nn.Module) -> None:
    """Give all ranks the first one's running statistics."""
    if rank_and_size()[1] > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)


def gathered(value: Tensor) -> list[Tensor]:
    """A uint8 tensor of each rank, all of one size, in their order; on every rank."""
    size = rank_and_size()[1]
    if size == 1:
        return [value]
    # NCCL takes tensors on the GPU alone.
    device = torch.device("cuda", torch.cuda.current_device()) if distributed.get_backend() == "nccl" else value.device
    values = [torch.empty_like(value, device=device) for _ in range(size)]
    distributed.all_gather(values, value.to(device))
    return [one.cpu() for one in values]


def broadcast_bytes(data: bytes | None) -> bytes | None:
    """What the first rank has, on every rank; None where it has nothing."""
    if rank_and_size()[1] == 1:
        return data
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    length = torch.tensor([-1 if data is None else len(data)], device=device)
    distributed.broadcast(length, 0)
    if length.item() < 0:
        return None
    value = torch.empty(int(length), dtype=torch.uint8, device=device)
    if data is not None and not distributed.get_rank():
        value = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device)
    distributed.broadcast(value, 0)
    return value.cpu().numpy().tobytes()
