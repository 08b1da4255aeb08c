"""What a dense network gives: a distribution over the classes in each cell of a grid, from one output or several.

A dense network's forward gives, in training and evaluation alike, a dictionary of float [batch, class, height, width]
at the network's own stride, never upsampled, `main` first; or one such tensor, which is `main` alone. Where it is a
dictionary, an attribute `outputs` of the module says so: the names, in their order.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gdkd_cache.errors import ModelError
from gdkd_cache.schema import short

MAIN = "main"
"""The output that is evaluated."""


def outputs_of(model: nn.Module) -> tuple[str, ...]:
    """The names of the outputs that a dense network says it has, `main` first; () where it says nothing of them."""
    outputs = getattr(model, "outputs", ())
    is_dense = isinstance(outputs, tuple | list) and all(isinstance(one, str) for one in outputs)
    return tuple(outputs) if is_dense and outputs[:1] in ((MAIN,), [MAIN]) else ()


def named_outputs(outputs: Any, what: str = "the network") -> dict[str, Float[Tensor, "batch class height width"]]:
    """What a dense network gave, by name: one tensor alone is `main`.

    Args:
        outputs: a float tensor [batch, class, height, width], or several by name.
        what: the network, for messages.

    Raises:
        ModelError: no such tensors, the first of several is not `main`, or they differ in their grid or classes.
    """
    parts = dict(outputs) if isinstance(outputs, Mapping) else {MAIN: outputs}
    if next(iter(parts), None) != MAIN:
        raise ModelError(f"{what} gives the outputs {_listed(parts)}; the first must be {MAIN}")
    for name, part in parts.items():
        if not (isinstance(part, Tensor) and part.is_floating_point() and part.ndim == 4):
            raise ModelError(
                f"{what} gives {_kind(part)} as {short(name)}; it must give float logits [batch, class, height, width]"
            )
        if part.shape != parts[MAIN].shape:
            raise ModelError(
                f"{what} gives {list(part.shape)} as {short(name)} and {list(parts[MAIN].shape)} as {MAIN}; all "
                "outputs must have one grid and the same classes"
            )
    return parts


def cell_logits(outputs: Any, what: str) -> tuple[tuple[str, ...], Float[Tensor, "batch *grid class"]]:
    """The logits of every cell, the classes last, of what a network gave.

    Args:
        outputs: as for `named_outputs`; or [batch, class], of one cell.
        what: the network, for messages.

    Returns:
        The outputs' names, none where there is only one; and float32 logits, whose grid is (height, width) of one
        output, (output, height, width) of several, and () of one cell.

    Raises:
        ModelError: as `named_outputs`.
    """
    if isinstance(outputs, Tensor) and outputs.is_floating_point() and outputs.ndim == 2:
        return (), outputs.float()
    parts = named_outputs(outputs, what)
    logits = [part.float().movedim(1, -1) for part in parts.values()]
    if len(logits) > 1:
        return tuple(parts), torch.stack(logits, 1)
    one = logits[0]
    return (), one.flatten(1) if one.shape[1:-1] == (1, 1) else one


def upsampled(
    maps: Float[Tensor, "batch class y x"], size: tuple[int, int]
) -> Float[Tensor, "batch class height width"]:
    """Maps resized bilinearly to another grid, or to an image's height and width, corners on corners.

    As the published code of GDKD and CIRKD does it (`align_corners`): neighbouring cells of stride s then lie
    (height - 1) / (y - 1) pixels apart.
    """
    if (maps.shape[2], maps.shape[3]) == size:
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=True)


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(map(short, names)) or "(none)"


def _kind(part: object) -> str:
    return f"{part.dtype} {list(part.shape)}" if isinstance(part, Tensor) else type(part).__name__
