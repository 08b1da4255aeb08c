"""Tensors that every machine fills alike, of which what a public definition gives was recorded."""

import math
import zlib

import torch
from torch import Tensor


def filled(key: str, shape: tuple[int, ...]) -> Tensor:
    """Values of a tensor, of its key alone, from whole numbers that every machine computes alike."""
    index, seed = torch.arange(math.prod(shape)), zlib.crc32(key.encode())
    unit = ((index * index * 40503 + index * seed + seed) % 65521).double() / 65521
    if key.endswith("num_batches_tracked"):
        return torch.tensor(7)
    if key.endswith("running_var"):
        values = 0.5 + unit
    elif key.endswith("weight") and len(shape) == 1:
        values = 0.4 + 0.8 * unit
    else:
        values = (2 * unit - 1) * (math.sqrt(6 / math.prod(shape[1:])) if len(shape) > 1 else 0.2)
    return values.float().reshape(shape)
