"""Batches whose rows are of several views: taken apart by view, and put together again."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from gdkd_cache.data.targets import Targets
from gdkd_cache.data.views import ViewBatch, ViewRequest


def by_view(numbers: np.ndarray) -> dict[int, np.ndarray]:
    """Where rows of views, int64 [row], are, by view: positions, rising."""
    return {view: np.flatnonzero(numbers == view) for view in np.unique(numbers).tolist()}


def requests_by_view(request: ViewRequest, numbers: np.ndarray) -> list[ViewRequest]:
    """What is rendered for a batch whose rows are of these views, int64 [row]."""
    return [ViewRequest((view,), request.rows[at]) for view, at in by_view(numbers).items()]


def put_back(parts: Sequence[Tensor], numbers: np.ndarray) -> Tensor:
    """What there is of each view in `by_view`, [row, ...], in the order of the batch."""
    if len(parts) == 1:
        return parts[0]
    order = np.argsort(np.concatenate([*by_view(numbers).values()]))
    return torch.cat([*parts])[torch.from_numpy(order).to(parts[0].device)]


def batches_of(rendered: Iterator[ViewBatch], numbers: Iterable[np.ndarray]) -> Iterator[ViewBatch]:
    """The batches whose requests by view were rendered, in this order; the `view` of one is that of its first part."""
    for own in numbers:
        parts = [*itertools.islice(rendered, len(by_view(own)))]
        yield parts[0] if len(parts) == 1 else _joined(parts, own)
    assert next(rendered, None) is None


def _joined(parts: Sequence[ViewBatch], numbers: np.ndarray) -> ViewBatch:
    order = np.argsort(np.concatenate([*by_view(numbers).values()]))
    rounded = [part.rounded for part in parts if part.rounded is not None]
    return replace(
        parts[0],
        rows=np.concatenate([part.rows for part in parts])[order],
        pixels=put_back([part.pixels for part in parts], numbers),
        targets=Targets.joined([part.targets for part in parts])[torch.from_numpy(order)],
        rounded=np.concatenate(rounded) if rounded else None,
    )
