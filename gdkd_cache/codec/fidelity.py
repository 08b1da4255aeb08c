"""How close a codec's reconstruction is to the logits, above all in the gradient that it gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gdkd_cache.codec.base import Codec, Decoded, References, exact_top, given, labels_of_cells
from gdkd_cache.losses.base import Loss
from gdkd_cache.losses.partition import standardize

_ENCODE_ROWS, _ENCODE_VALUES = 2048, 2**23


def encoded_at_once(grid: Sequence[int], num_classes: int) -> int:
    """How many rows are encoded at once where nothing else cuts them: 2048, or as many as have 2^23 logits.

    Args:
        grid: the axes of a row's cells.
        num_classes: of the logits.
    """
    return max(min(_ENCODE_ROWS, _ENCODE_VALUES // (prod(grid) * num_classes)), 1)


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """What the codec was measured to lose on held-out rows: what `measure` says.

    Attributes:
        rows: how many.
        gradient_error: of each declared loss that it serves, by `error_name`.
        kl: mean KL(full || decoded), by the temperature's text.
        top1_agreement, topk_agreement: in [0, 1]; 1 for an exact codec.
        max_error: the largest absolute error of a centred logit.
    """

    rows: int
    gradient_error: dict[str, int | float]
    kl: dict[str, int | float]
    top1_agreement: int | float | None
    topk_agreement: int | float | None
    max_error: int | float


def gradient(
    loss: Loss,
    teacher: Float[Tensor, "row class"],
    labels: Int[Tensor, " row"],
    top: Int[Tensor, "row k"],
) -> Float[Tensor, "row class"]:
    """Gradient of a loss with respect to the logits of a uniform student (all zero), row by row.

    For a standardized loss it is the gradient with respect to the standardized logits.
    """
    if loss.standardize:
        teacher = standardize(teacher)
    student = torch.zeros_like(teacher, requires_grad=True)
    (gradients,) = torch.autograd.grad(loss.value(student, teacher, labels, top) * len(teacher), student)
    return gradients


def gradient_error(
    loss: Loss,
    logits: Float[Tensor, "row class"],
    decoded: Float[Tensor, "row class"],
    labels: Int[Tensor, " row"],
    top: Int[Tensor, "row k"],
) -> float:
    """||G_cache - G_full||_F / ||G_full||_F for a uniform student, with the exact partition.

    Args:
        loss: the loss.
        logits: what the teacher said, float32.
        decoded: what the cache gives back, float32.
        labels: class ids.
        top: the exact top classes in rank order.

    Returns:
        0 for a perfect cache; 0 also where the full gradient itself vanishes and the cache's does.
    """
    full, cached = (gradient(loss, z, labels, top).double() for z in (logits, decoded))
    size = float(full.norm())
    return float((cached - full).norm()) / size if size else float(cached.norm())


def encode_rows(
    codec: Codec, logits: Tensor, labels: Tensor, references: References | None = None
) -> dict[str, Tensor]:
    """Encode any number of rows, some at a time."""
    rows = encoded_at_once(logits.shape[1:-1], logits.shape[-1])
    pieces = [logits.split(rows), labels.split(rows)]
    if references is not None:
        split = [part.split(rows) for part in references]
        pieces.append(tuple(starmap(References, zip(*split, strict=True))))
    parts = [codec.encode(*piece) for piece in zip(*pieces, strict=True)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def decode_rows(
    codec: Codec,
    columns: Mapping[str, Tensor],
    labels: Tensor,
    temperature: float | None = None,
    references: References | None = None,
) -> Decoded:
    """Check and decode stored columns as a reader would."""
    columns, labels = {name: column.cpu() for name, column in columns.items()}, labels.cpu()
    known = given(references)
    counts = [one.weights.shape[1] for one in known]
    codec.check({name: column.numpy() for name, column in columns.items()}, labels.numpy(), *counts)
    return codec.decode(columns, labels, temperature, *known)


def measure(
    codec: Codec,
    logits: Tensor,
    labels: Tensor,
    losses: Sequence[Loss],
    references: References | None = None,
    *,
    outputs: Sequence[str] = (),
) -> tuple[Fidelity, dict[str, Tensor]]:
    """Encode rows and say what was lost.

    Args:
        codec: the codec.
        logits: float32 [row, *grid, class], rows that it was not fitted to; the first axis of the grid is that of the
            outputs, where these have names.
        labels: int64 [row], or [row, ...] where each place of the grid has one; where none has, the losses are given
            each cell's first class.
        losses: the declared losses; those that the codec does not serve are left out.
        references: what those rows of the view are predicted from.
        outputs: their names.

    Returns:
        What was lost, and the encoded columns.
    """
    grid, rows, own = tuple(logits.shape[1:-1]), logits, labels
    if grid and not codec.whole_rows:
        rows, own = logits.flatten(0, -2), labels_of_cells(labels, grid)
    columns = encode_rows(codec, rows, own, references)
    exact = exact_top(logits, codec.num_top).classes
    theirs = exact[..., 0] if grid and labels.ndim == 1 else labels_of_cells(labels, grid).view(logits.shape[:-1])
    errors, divergences, largest, agreement = {}, {}, 0.0, torch.zeros(0)
    for loss in losses:
        if codec.refusal(loss) is not None:
            continue
        decoded, top = decode_rows(codec, columns, own, loss.temperature, references)
        decoded = decoded.view(logits.shape)
        for number, output in enumerate(outputs or ("",)):
            parts = (one[:, number] if outputs else one for one in (logits, decoded, exact))
            label = theirs[:, number] if outputs else theirs
            z, ours, classes = (part.flatten(0, -2) for part in parts)
            key = error_name(loss, output if number else "")
            errors[key] = _rounded(gradient_error(loss, z, ours, label.flatten(), classes))
        full, ours = ((z / loss.temperature).log_softmax(-1) for z in (logits, decoded))
        divergences[f"{loss.temperature:g}"] = _rounded(float((full.exp() * (full - ours)).sum(-1).mean()))
        centred = [z - z.mean(-1, keepdim=True) for z in (logits, decoded)]
        largest = max(largest, float((centred[0] - centred[1]).abs().max()))
        agreement = (top.classes.view(exact.shape) == exact).double()
    fidelity = Fidelity(
        rows=len(logits),
        gradient_error=errors,
        kl=divergences,
        top1_agreement=float(agreement[..., 0].mean()) if agreement.numel() else None,
        topk_agreement=float(agreement.mean()) if agreement.numel() else None,
        max_error=_rounded(largest),
    )
    return fidelity, columns


def error_name(loss: Loss, output: str = "") -> str:
    """As a gradient error is named: by the loss, and by the output, unless it is the only or the first one."""
    return f"{loss} [{output}]" if output else str(loss)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
