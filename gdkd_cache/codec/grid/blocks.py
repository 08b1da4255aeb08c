"""Blocks of 8x8 cells, and the whole-numbered cosine basis over one."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

SIDE = 8
CELLS = SIDE * SIDE
# The whole-numbered cosines of video coding (ITU-T H.265, 8.6.4.2): rows are frequencies, nearly orthogonal, and all of
# a length within 0.05% of 64 * 8**.5.
_COSINES = np.array(
    [
        [64, 64, 64, 64, 64, 64, 64, 64],
        [89, 75, 50, 18, -18, -50, -75, -89],
        [83, 36, -36, -83, -83, -36, 36, 83],
        [75, -18, -89, -50, 50, 89, 18, -75],
        [64, -64, -64, 64, 64, -64, -64, 64],
        [50, -89, 18, 75, -75, -18, 89, -50],
        [36, -83, 83, -36, -36, 83, -83, 36],
        [18, -50, 75, -89, 89, -75, 50, -18],
    ]
)
COSINES = np.kron(_COSINES, _COSINES).T
"""int [cell, frequency], of cells and frequencies row by row."""
COSINES_SCALE = 2**15
"""What divides them to nearly unit length."""


def num_blocks(height: int, width: int) -> int:
    """How many blocks cover a grid."""
    return -(-height // SIDE) * -(-width // SIDE)


def split(grids: Float[Tensor, "row height width class"]) -> Float[Tensor, "block cell class"]:
    """The blocks that cover each row's grid, row by row; beyond an edge the cells at it are repeated."""
    rows, height, width, num_classes = grids.shape
    down, across = -(-height // SIDE), -(-width // SIDE)
    padding = (0, across * SIDE - width, 0, down * SIDE - height)
    padded = F.pad(grids.movedim(-1, 1), padding, mode="replicate").movedim(1, -1)
    blocks = padded.reshape(rows, down, SIDE, across, SIDE, num_classes).transpose(2, 3)
    return blocks.reshape(rows * down * across, CELLS, num_classes)


def joined(blocks: Float[Tensor, "block cell class"], height: int, width: int) -> Float[Tensor, "row h w class"]:
    """The inverse of `split`."""
    down, across = -(-height // SIDE), -(-width // SIDE)
    grids = blocks.reshape(len(blocks) // (down * across), down, across, SIDE, SIDE, blocks.shape[-1]).transpose(2, 3)
    return grids.reshape(len(grids), down * SIDE, across * SIDE, blocks.shape[-1])[:, :height, :width]


def inside(height: int, width: int) -> Float[Tensor, "block cell one"]:
    """1 for the cells of a grid's blocks that lie in it, 0 beyond its edges."""
    down, across = -(-height // SIDE), -(-width // SIDE)
    marked = torch.zeros(1, down * SIDE, across * SIDE, 1)
    marked[:, :height, :width] = 1
    return split(marked)
