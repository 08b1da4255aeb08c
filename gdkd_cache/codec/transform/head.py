"""The exact top classes, coded against the reconstruction: ids as ranks in it, values as rare corrections.

All that is compared is whole numbers, so that any machine decodes the same ids: `scores` are reconstructed logits
in units of a small fraction of the step, exact integers.
"""

import torch
from torch import Tensor

from gdkd_cache.errors import CacheError

_NEVER = -(2**60)


def _keys(scores: Tensor) -> Tensor:
    """Unique keys in the order of the scores, equal scores by ascending class id: int64 [row, class]."""
    num_classes = scores.shape[-1]
    return scores * num_classes + (num_classes - 1 - torch.arange(num_classes, device=scores.device))


def _base(own: Tensor, best: Tensor, previous: Tensor) -> Tensor:
    """The predicted value: the class's own score, or half way up to the best class left; never above the last value."""
    return torch.minimum(torch.where(best > own, (best + own) >> 1, own), previous)


def encode_head(scores: Tensor, classes: Tensor, values: Tensor, value_step: int) -> tuple[Tensor, Tensor]:
    """Code the top classes.

    Args:
        scores: int64 [row, class], the reconstruction, in units.
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
        base = _base(
            own_keys[:, r].div(num_classes, rounding_mode="floor"),
            best.div(num_classes, rounding_mode="floor"),
            previous,
        )
        correction = (2 * (values[:, r] - base) + value_step).div(2 * value_step, rounding_mode="floor")
        previous = torch.minimum(base + correction * value_step, previous)
        corrections.append(correction)
        keys.scatter_(-1, classes[:, r : r + 1], _NEVER)
    empty = scores.new_empty((len(scores), 0))
    return torch.stack(ranks, -1) if ranks else empty, torch.stack(corrections, -1)


def decode_head(
    scores: Tensor, first: Tensor, ranks: Tensor, corrections: Tensor, value_step: int
) -> tuple[Tensor, Tensor]:
    """The inverse of `encode_head`.

    Args:
        scores: as there.
        first: int64 [row], the top-1 classes.
        ranks, corrections, value_step: as there.

    Returns:
        classes int64 [row, k] and values int64 [row, k], in units, non-increasing.

    Raises:
        CacheError: a rank beyond the classes that are left.
    """
    num_classes, num_top = scores.shape[-1], corrections.shape[-1]
    remaining = num_classes - 1 - torch.arange(num_top - 1, device=scores.device)
    if ((ranks < 0) | (ranks >= remaining)).any():
        raise CacheError(f"a stored rank lies beyond the {num_classes} classes: the cache is damaged")
    furthest = int(ranks.max()) if ranks.numel() else 0
    keys = _keys(scores)
    own_key, best = keys.gather(-1, first[:, None]), keys.amax(-1)
    keys.scatter_(-1, first[:, None], _NEVER)
    # Each rank counts classes that are left, so the decoder looks no deeper than this.
    left = keys.topk(min(num_classes, furthest + num_top + 1), -1).values
    previous = torch.full_like(first, -_NEVER)
    classes, values = [], []
    for r in range(num_top):
        if r:
            best = left[:, 0]
            at = ranks[:, r - 1 : r]
            own_key = left.gather(-1, at)
            position = torch.arange(left.shape[-1] - 1, device=left.device).expand(len(left), -1)
            left = left.gather(-1, position + (position >= at))
        own = own_key[:, 0].div(num_classes, rounding_mode="floor")
        base = _base(own, best.div(num_classes, rounding_mode="floor"), previous)
        previous = torch.minimum(base + corrections[:, r] * value_step, previous)
        classes.append(num_classes - 1 - (own_key[:, 0] - own * num_classes))
        values.append(previous)
    return torch.stack(classes, -1), torch.stack(values, -1)
