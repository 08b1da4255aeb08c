"""How version 0.1.0 decoded `transform`, column by column and rank by rank: slow, and what must come out to the bit."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from gdkd_cache.codec.transform.codec import LABEL_WEIGHT, QUARTERS, TransformCodec
from gdkd_cache.codec.transform.patterns import ESCAPE, PatternGroup

_NEVER = -(2**60)


def expanded(codec: TransformCodec, columns: Mapping[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits float32 [row, class], and the top classes' values float32 and ids int64 [row, k]."""
    symbols = _unpacked(codec, columns["packed"], columns["escape"]).long()
    steps, ranks, corrections, code = symbols.split([codec.num_components, codec.num_top - 1, codec.num_top, 1], -1)
    mean, basis, means = (torch.from_numpy(getattr(codec.tables, name)) for name in ("mean", "basis", "class_means"))
    order = _order(codec, mean, basis, means)
    first = code[:, 0] if order is None else order[labels, code[:, 0]]
    other = ((labels != first).long() * LABEL_WEIGHT)[:, None] * means.long()[labels]
    coefficients = means.long()[first] + ((other + 128) >> 8) + QUARTERS * steps
    classes, whole = _head(_scores(coefficients, mean, basis), first, ranks, corrections, codec.value_step)
    values = (whole.double() * codec.unit).float()
    logits = torch.addmm(mean.float(), coefficients.float(), basis.float().T) * codec.unit
    return logits.minimum(values[:, -1:]).scatter(-1, classes, values), values, classes


def _unpacked(codec: TransformCodec, packed: Tensor, escape: Tensor) -> Tensor:
    parts, start, first = [], 0, 0
    for size, names in zip(codec.tables.groups.tolist(), packed.unbind(-1), strict=True):
        group = PatternGroup(codec.tables.costs[first : first + size])
        values = group.table[names.long()]
        values[names == ESCAPE] = escape[names == ESCAPE, start : start + group.width]
        parts.append(values)
        start, first = start + group.width, first + size
    return torch.cat(parts, -1)


def _scores(coefficients: Tensor, mean: Tensor, basis: Tensor) -> Tensor:
    return (coefficients.double() @ basis.double().T).long() + mean.long()


def _order(codec: TransformCodec, mean: Tensor, basis: Tensor, means: Tensor) -> Tensor | None:
    num_classes = codec.num_classes
    if num_classes > 2048:
        return None
    keys = _scores(means, mean, basis) * num_classes + (num_classes - 1 - torch.arange(num_classes))
    return keys.fill_diagonal_(2**62).argsort(dim=-1, descending=True, stable=True)


def _head(scores: Tensor, first: Tensor, ranks: Tensor, corrections: Tensor, value_step: int) -> tuple[Tensor, Tensor]:
    """One row after the other, in Python's whole numbers."""
    classes, values = [], []
    for row in range(len(scores)):
        left = scores[row].argsort(descending=True, stable=True).tolist()
        before, ids, kept = -_NEVER, [], []
        for number, correction in enumerate(corrections[row].tolist()):
            best, own = left[0], int(first[row]) if number == 0 else left[int(ranks[row, number - 1])]
            low, high = int(scores[row, own]), int(scores[row, best])
            before = min(min((high + low) >> 1 if high > low else low, before) + correction * value_step, before)
            left.remove(own)
            ids.append(own)
            kept.append(before)
        classes.append(ids)
        values.append(kept)
    shape = corrections.shape
    return (torch.from_numpy(np.array(one, np.int64).reshape(shape)) for one in (classes, values))  # type: ignore[return-value]
