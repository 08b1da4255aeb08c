"""What calibration rows say of a teacher whatever the step: means, and the Karhunen-Loeve basis of what they leave."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gdkd_cache.codec.base import exact_top
from gdkd_cache.codec.transform.codec import LABEL_WEIGHT
from gdkd_cache.codec.transform.quantise import sensitivity
from gdkd_cache.codec.transform.tables import MOST_COMPONENTS
from gdkd_cache.losses.base import Loss
from gdkd_cache.threads import one_thread

_SHRINKAGE = 4.0
_FULL_EIGENPROBLEM = 2048
_SPANNING_ROWS = 3072
_BLOCK_VALUES = 2**23
_NEGLIGIBLE = 1e-9  # of the largest variance: directions that rounding made


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """What calibration rows say of a teacher, whatever the step.

    Attributes:
        logits: float32 [row, class].
        labels: int64 [row].
        num_top: how many exact classes the codec shall keep.
        losses: what it shall serve best.
        stored_rows: how many rows of the cache share the tables.
        mean: float64 [class], mean centred logits.
        seen: int64 [seen class], the classes that are the top-1 of some row.
        basis: float64 [class, component], orthonormal, by falling variance.
        class_means: float64 [seen class, component], their rows' mean deviation in it, shrunk towards 0 where rare.
        variances: float64 [component], of what the class means leave.
        spread: float64 [component], of what there is without them.
        weight_scale: mean sensitivity.
    """

    logits: Tensor
    labels: Tensor
    num_top: int
    losses: tuple[Loss, ...]
    stored_rows: int
    mean: np.ndarray
    seen: np.ndarray
    basis: np.ndarray
    class_means: np.ndarray
    variances: np.ndarray
    spread: np.ndarray
    weight_scale: float


@one_thread()
def gather_statistics(
    logits: Tensor, labels: Tensor, *, num_top: int, losses: Sequence[Loss], stored_rows: int
) -> Statistics:
    """Means, and the Karhunen-Loeve basis of what they leave.

    A class seen n times as top-1 has its mean weighed by n / (n + 4), so that classes that calibration never saw are
    predicted by the overall mean; the variances are pulled to their mean with weight (components / rows)**2. Up to
    2048 classes the basis is the covariance's full eigenbasis; above, it spans at most 3072 of the rows, whose Gram
    matrix is far smaller than the covariance. Beside the logits it takes memory for a block of rows, the covariance or
    those rows, and one number a row and component.

    Args:
        logits: float32 [row, class], at least one row.
        labels: int64 [row].
        num_top: 1 <= num_top < class.
        losses: the declared losses.
        stored_rows: how many rows of the cache share the tables.
    """
    top = torch.cat([exact_top(rows, num_top).classes for rows, _ in _blocks(logits)])
    top1, weights = top[:, 0], 0.0
    mean = torch.zeros(logits.shape[-1], dtype=torch.float64)
    for rows, own in _blocks(logits):
        mean += _centred(rows).sum(0) / len(logits)
        weights += float(sensitivity(losses, rows, labels[own], top[own]).double().mean(-1).sum()) / len(logits)
    basis = _basis(logits, top1, labels, mean)
    coefficients = torch.cat([((_centred(rows) - mean) @ basis).float() for rows, _ in _blocks(logits)])
    seen, class_means, predicted = _class_means(coefficients, top1, labels)
    left = torch.zeros(basis.shape[1], dtype=torch.float64)
    spread = torch.zeros_like(left)
    for rows, own in _blocks(coefficients):
        left += (rows - predicted(own)).double().square().sum(0) / len(logits)
        spread += rows.double().square().sum(0) / len(logits)
    # Fewer rows than a few per class leave directions unseen: pull the variances towards their mean.
    doubt = (basis.shape[1] / len(logits)) ** 2
    variances, spread = ((own + doubt * left.mean()) / (1 + doubt) for own in (left, spread))
    return Statistics(
        logits=logits,
        labels=labels,
        num_top=num_top,
        losses=tuple(losses),
        stored_rows=stored_rows,
        mean=mean.numpy(),
        seen=seen.numpy(),
        basis=basis.numpy(),
        class_means=class_means.numpy(),
        variances=variances.numpy(),
        spread=spread.numpy(),
        weight_scale=max(weights, 1e-12),
    )


def _blocks(table: Tensor) -> Iterator[tuple[Tensor, slice]]:
    """Rows that take a bounded amount of memory at a time, and which they are."""
    size = max(_BLOCK_VALUES // table.shape[-1], 1)
    for first in range(0, len(table), size):
        yield table[first : first + size], slice(first, min(first + size, len(table)))


def _centred(rows: Tensor) -> Tensor:
    return (rows - rows.mean(-1, keepdim=True)).double()


def _class_means(table: Tensor, top1: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Callable[[slice], Tensor]]:
    """The classes that are a row's top-1, their rows' shrunk means, and what these predict of some rows.

    Args:
        table: float32 [row, component].
        top1, labels: int64 [row].
    """
    seen, position, counts = top1.unique(return_inverse=True, return_counts=True)
    means = torch.zeros(len(seen) + 1, table.shape[-1], dtype=torch.float64)
    for rows, own in _blocks(table):
        means.index_add_(0, position[own], rows.double())
    means[:-1] /= (counts + _SHRINKAGE)[:, None]
    place = torch.full((int(torch.maximum(labels.max(), seen[-1])) + 1,), len(seen))
    place[seen] = torch.arange(len(seen))
    single = means.float()

    def predicted(rows: slice) -> Tensor:
        other = (labels[rows] != top1[rows]).float()[:, None] * (LABEL_WEIGHT / 256)
        return single[position[rows]] + other * single[place[labels[rows]]]

    return seen, means[:-1], predicted


def _basis(logits: Tensor, top1: Tensor, labels: Tensor, mean: Tensor) -> Tensor:
    """Orthonormal directions of falling variance of what class means leave: float64 [class, component]."""
    num_rows, num_classes = logits.shape
    spans = num_classes > _FULL_EIGENPROBLEM
    some = torch.arange(0, num_rows, -(-num_rows // _SPANNING_ROWS)) if spans else torch.arange(num_rows)
    residual = torch.empty(len(some), num_classes)
    for rows, own in _blocks(residual):
        rows.copy_(_centred(logits[some[own]]) - mean)
    parts = residual.split(_FULL_EIGENPROBLEM, -1)  # of many classes, means of all at once would outgrow the rows
    for part in parts:
        *_, predicted = _class_means(part, top1[some], labels[some])
        for rows, own in _blocks(part):
            rows -= predicted(own)
    if not spans:
        covariance = torch.zeros(num_classes, num_classes, dtype=torch.float64)
        for rows, _ in _blocks(residual):
            covariance += rows.T @ rows
        basis = torch.linalg.eigh(covariance)[1].flip(1)[:, : min(MOST_COMPONENTS, num_classes - 1)]
    else:
        energies, directions = torch.linalg.eigh((residual @ residual.T).double())
        energies, directions = energies.flip(0)[:MOST_COMPONENTS], directions.flip(1)[:, :MOST_COMPONENTS]
        directions = directions[:, energies > _NEGLIGIBLE * energies[0]]
        basis = torch.linalg.qr(torch.cat([part.double().T @ directions for part in parts]))[0]
    # A basis vector's sign is arbitrary: fix it, for the same bytes from every run.
    signs = basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
    return basis * torch.where(signs == 0, 1, signs)
