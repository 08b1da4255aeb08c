"""Where to compute, in which precision, and with images in which order in memory."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gdkd_cache.errors import UsageError
from gdkd_cache.limits import PRECISIONS
from gdkd_cache.ranks import this_rank
from gdkd_cache.schema import short

_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
_SMALL_SIDE = 32


def choose_device(name: str) -> torch.device:
    """`auto` is a GPU where there is one (of several ranks, each takes the next), else the CPU.

    Raises:
        UsageError: an unknown device, or one that this machine does not have.
    """
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        device = torch.device("cuda", this_rank().local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return device
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device is {name!r}; it must be auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda") and not (device.type == "mps" and torch.backends.mps.is_available()):
        raise UsageError(f"device is {name!r}, which this machine has not; it must be auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device {name} does not exist; this machine has {torch.cuda.device_count()} GPUs")
    return device


def describe(device: torch.device) -> str:
    """The kind of device, as it moves a teacher's last bits: `cpu` or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def choose_precision(name: str, device: torch.device) -> str:
    """`auto` is float16 on a GPU (11 bits keep logits apart that bfloat16's 8 would tie), float32 elsewhere.

    Raises:
        UsageError: an unknown precision.
    """
    if name not in PRECISIONS:
        raise UsageError(f"precision is {name!r}; it must be one of {', '.join(PRECISIONS)}")
    return name if name != "auto" else "float16" if device.type == "cuda" else "float32"


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Autocast to the precision; float32 runs as it is, and so does tf32, which `float32_products` is for."""
    if precision in ("float32", "tf32"):
        return contextlib.nullcontext()
    return torch.autocast(device.type, getattr(torch, precision))


@contextlib.contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Have GPUs multiply float32 in TensorFloat32 (10 bits) in the block, forwards and backwards, where that is `tf32`.

    It holds for all threads of the process: for a live teacher too.
    """
    if precision != "tf32":
        yield
        return
    convolution: Any = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]  (made when torch loads)
    matmul, before = torch.get_float32_matmul_precision(), convolution.fp32_precision
    torch.set_float32_matmul_precision("high")
    convolution.fp32_precision = "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        convolution.fp32_precision = before


def usual_memory_format(device: torch.device) -> str:
    """What a manifest leaves unsaid: `channels_last` on a GPU, `contiguous` elsewhere."""
    return "channels_last" if device.type == "cuda" else "contiguous"


def memory_formats(device: torch.device, size: tuple[int, int]) -> tuple[str, ...]:
    """The orders in memory to give a network images [batch, channel, height, width] in, the fastest first.

    On a CPU that is `channels_last` from 32 pixels a side on, which not every network takes. In smaller images the last
    layers' channels are many beside their few pixels: such networks are slower in it, to half.

    Args:
        device: where they are computed.
        size: height and width.
    """
    usual = usual_memory_format(device)
    return ("channels_last", usual) if device.type == "cpu" and min(size) >= _SMALL_SIDE else (usual,)


def laid_out(images: Tensor, memory_format: str) -> Tensor:
    """Images [batch, channel, height, width] in a memory format.

    Raises:
        UsageError: an unknown one.
    """
    if memory_format not in _FORMATS:
        raise UsageError(f"memory format is {short(memory_format)}; it must be one of {', '.join(_FORMATS)}")
    return images.contiguous(memory_format=_FORMATS[memory_format])
