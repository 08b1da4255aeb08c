"""The exact top classes, coded against the reconstruction: ids as ranks in it, values as rare corrections.

All that is compared is whole numbers, so that any machine decodes the same ids: `scores` are reconstructed logits
in units of a small fraction of the step, exact integers.
"""

import numpy as np
import torch
from torch import Tensor

_NEVER = -(2**60)


def _keys(scores: Tensor) -> Tensor:
    """Unique keys in the order of the scores, equal scores by ascending class id: whole float64 [row, class]."""
    num_classes = scores.shape[-1]
    ids = torch.arange(num_classes, dtype=scores.dtype, device=scores.device)
    return torch.add(num_classes - 1 - ids, scores, alpha=num_classes)


def _split(keys: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Scores and class ids of keys, int64 both."""
    whole = keys.long()
    scores = whole.div(num_classes, rounding_mode="floor")
    return scores, num_classes - 1 - (whole - scores * num_classes)


def _predicted(own: Tensor, best: Tensor) -> Tensor:
    """The predicted value: the class's own score, or half way up to the best class left."""
    return torch.where(best > own, (best + own) >> 1, own)


def encode_head(scores: Tensor, classes: Tensor, values: Tensor, value_step: int) -> tuple[Tensor, Tensor]:
    """Code the top classes.

    Args:
        scores: whole float64 [row, class], the reconstruction, in units.
        classes: int64 [row, k], exact top classes in rank order.
        values: int64 [row, k], their true logits, in units.
        value_step: quantisation step of the values, in units.

    Returns:
        ranks int64 [row, k - 1] >= 0, of classes 2..k among those that are left; corrections int64 [row, k].
    """
    num_classes = scores.shape[-1]
    keys = _keys(scores)
    own_keys = keys.gather(-1, classes)
    previous = torch.full_like(values[:, 0], -_NEVER)
    ranks, corrections = [], []
    for r in range(classes.shape[-1]):
        best = keys.amax(-1)
        if r:
            ranks.append((keys > own_keys[:, r : r + 1]).sum(-1))
        predicted = _predicted(_split(own_keys[:, r], num_classes)[0], _split(best, num_classes)[0])
        base = torch.minimum(predicted, previous)
        correction = (2 * (values[:, r] - base) + value_step).div(2 * value_step, rounding_mode="floor")
        previous = torch.minimum(base + correction * value_step, previous)
        corrections.append(correction)
        keys.scatter_(-1, classes[:, r : r + 1], _NEVER)
    empty = classes.new_empty((len(scores), 0))
    return torch.stack(ranks, -1) if ranks else empty, torch.stack(corrections, -1)


def decode_head(
    scores: Tensor, first: Tensor, ranks: Tensor, corrections: Tensor, value_step: int
) -> tuple[Tensor, Tensor]:
    """The inverse of `encode_head`.

    Args:
        scores: as there.
        first: int64 [row], the top-1 classes.
        ranks: int64 [row, k - 1], each below the number of classes that are left.
        corrections, value_step: as there.

    Returns:
        classes int64 [row, k] and values int64 [row, k], in units, non-increasing.
    """
    num_classes, num_top = scores.shape[-1], corrections.shape[-1]
    keys = _keys(scores)
    own = keys.gather(-1, first[:, None])
    if num_top == 1:
        best = keys.amax(-1, keepdim=True)
    else:
        # Each rank counts classes that are left, so the decoder looks no deeper than this.
        deepest = int(ranks.max()) + num_top - 1 if len(ranks) else 1
        left = largest(keys.scatter_(-1, first[:, None], _NEVER), min(num_classes - 1, deepest))
        places = _places(ranks)
        best = torch.cat([torch.maximum(own, left[:, :1]), left.gather(-1, _first_left(places))], -1)
        own = torch.cat([own, left.gather(-1, places)], -1)
    score, classes = _split(own, num_classes)
    predicted = _predicted(score, _split(best, num_classes)[0])
    # value = min(min(predicted, value before) + change, value before), unrolled: `falls` is what the sum of the
    # negative changes takes from all that follow.
    changes = corrections * value_step
    falls = changes.clamp(max=0).cumsum(-1)
    return classes, (predicted + changes - falls).cummin(-1).values + falls


def encode_ranks(scores: Tensor, classes: Tensor) -> Tensor:
    """Code the top classes alone, the first as well by its rank in the reconstruction: int64 [row, k] >= 0.

    Args:
        scores: whole float64 [row, class], the reconstruction.
        classes: int64 [row, k], exact top classes in rank order.
    """
    keys = _keys(scores)
    own_keys, ranks = keys.gather(-1, classes), []
    for r in range(classes.shape[-1]):
        ranks.append((keys > own_keys[:, r : r + 1]).sum(-1))
        keys.scatter_(-1, classes[:, r : r + 1], _NEVER)
    return torch.stack(ranks, -1)


def decode_ranks(scores: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `encode_ranks`.

    Args:
        scores: as there.
        ranks: int64 [row, k], each below the number of classes that are left.

    Returns:
        classes int64 [row, k] and values int64 [row, k], as near the scores as a falling order allows.
    """
    num_classes, num_top = scores.shape[-1], ranks.shape[-1]
    deepest = int(ranks.max()) if len(ranks) else 0
    left = largest(_keys(scores), min(num_classes, deepest + num_top))
    places = _places(ranks)
    score, classes = _split(left.gather(-1, places), num_classes)
    best = _split(left.gather(-1, _first_left(places)), num_classes)[0]
    return classes, _predicted(score, best).cummin(-1).values


def largest(keys: Tensor, count: int) -> Tensor:
    """The largest keys of each row, descending: [row, count]."""
    if keys.device.type != "cpu":
        return keys.topk(count, -1).values
    # numpy selects and sorts with vector instructions, at a fraction of what torch's topk takes.
    array = keys.numpy()
    array.partition(array.shape[-1] - count, axis=-1)
    return torch.from_numpy(np.sort(array[:, -count:], axis=-1)[:, ::-1].copy())


def _places(ranks: Tensor) -> Tensor:
    """Ranks among the classes that are left -> places among all of them: int64 [row, rank]."""
    places = ranks.T.contiguous()
    for r in range(len(places) - 2, -1, -1):
        places[r + 1 :] += places[r + 1 :] >= places[r]
    return places.T


def _first_left(places: Tensor) -> Tensor:
    """The first place that none before has taken, for each of a row's places in turn: int64 [row, rank]."""
    num_rows, count = places.shape
    turns = torch.arange(count, device=places.device).expand(num_rows, -1).contiguous()
    taken = turns.new_full((num_rows, count + 1), count)
    taken.scatter_(-1, places.clamp(max=count), turns)
    return torch.searchsorted(taken[:, :count].cummax(-1).values, turns)
