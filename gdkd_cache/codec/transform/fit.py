"""Fit a transform codec to calibration rows: statistics once, then tables for any step."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gdkd_cache.codec.base import exact_top
from gdkd_cache.codec.transform.codec import BASIS_SCALE, LABEL_WEIGHT, QUARTERS, TransformCodec
from gdkd_cache.codec.transform.patterns import column_costs, group_columns
from gdkd_cache.codec.transform.quantise import sensitivity
from gdkd_cache.codec.transform.tables import MOST_COMPONENTS, TransformTables, no_references
from gdkd_cache.losses.base import Loss
from gdkd_cache.threads import one_thread

_SHRINKAGE = 4.0
_FULL_EIGENPROBLEM = 1024
_LEAST_VARIANCE = 0.12
_PENALTY = 0.05
_PASSES = 3
_ENCODE_ROWS = 2048


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """What calibration rows say of a teacher, whatever the step.

    Attributes:
        logits: float32 [row, class].
        labels: int64 [row].
        num_top: how many exact classes the codec shall keep.
        losses: what it shall serve best.
        mean: float64 [class], mean centred logits.
        seen: int64 [seen class], the classes that are the top-1 of some row.
        class_means: float64 [seen class, class], their rows' mean deviation, shrunk towards 0 where rare.
        variances: float64 [component], descending.
        basis: float64 [class, component], orthonormal.
        weight_scale: mean sensitivity.
    """

    logits: Tensor
    labels: Tensor
    num_top: int
    losses: tuple[Loss, ...]
    mean: np.ndarray
    seen: np.ndarray
    class_means: np.ndarray
    variances: np.ndarray
    basis: np.ndarray
    weight_scale: float


@one_thread()
def gather_statistics(logits: Tensor, labels: Tensor, *, num_top: int, losses: Sequence[Loss]) -> Statistics:
    """Means, and the Karhunen-Loeve basis of what they leave.

    A class seen n times as top-1 has its mean weighed by n / (n + 4), so that classes that calibration never saw are
    predicted by the overall mean; the variances are pulled to their mean with weight (C / rows)**2. Up to 1024
    classes the basis is the covariance's full eigenbasis; above, the leading 256 components by a randomised
    decomposition of the rows (seeded), in O(rows * classes * 256) time and O(rows * classes) memory.

    Args:
        logits: float32 [row, class], at least one row.
        labels: int64 [row].
        num_top: 1 <= num_top < class.
        losses: the declared losses.
    """
    num_rows, num_classes = logits.shape
    centred = (logits - logits.mean(-1, keepdim=True)).double()
    top = exact_top(logits, num_top)
    top1, mean = top.classes[:, 0], centred.mean(0)
    seen, position, counts = top1.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(seen), num_classes, dtype=torch.float64).index_add_(0, position, centred - mean)
    class_means = sums / (counts + _SHRINKAGE)[:, None]
    place = torch.full((num_classes,), len(seen)).scatter(0, seen, torch.arange(len(seen)))
    of_label = torch.cat([class_means, torch.zeros(1, num_classes, dtype=torch.float64)])[place[labels]]
    other = (labels != top1).double()[:, None] * (LABEL_WEIGHT / 256) * of_label
    residual = centred - mean - class_means[position] - other
    if num_classes <= _FULL_EIGENPROBLEM:
        variances, basis = torch.linalg.eigh(residual.T @ residual / num_rows)
        variances, basis = variances.flip(0), basis.flip(1)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _, singular, basis = torch.svd_lowrank(residual, q=min(MOST_COMPONENTS + 16, *residual.shape), niter=3)
        variances = singular.square() / num_rows
    # Fewer rows than a few per class leave directions unseen: pull the variances towards their mean.
    doubt = (num_classes / num_rows) ** 2
    variances = (variances.clamp(min=0) + doubt * variances.clamp(min=0).mean()) / (1 + doubt)
    # A basis vector's sign is arbitrary: fix it, for the same bytes from every run.
    signs = basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
    weights = sensitivity(losses, logits, labels, top.classes)
    return Statistics(
        logits=logits,
        labels=labels,
        num_top=num_top,
        losses=tuple(losses),
        mean=mean.numpy(),
        seen=seen.numpy(),
        class_means=class_means.numpy(),
        variances=variances.numpy(),
        basis=(basis * torch.where(signs == 0, 1, signs)).numpy(),
        weight_scale=max(float(weights.mean()), 1e-12),
    )


def fit_transform(statistics: Statistics, step: float, *, group: bool = True) -> TransformCodec:
    """Fit the tables for one step: components worth coding, cost models, and groups of columns.

    Args:
        statistics: of the calibration rows.
        step: quantisation step in logits, above 0.
        group: merge columns into bytes; without it (which is faster) the reconstruction is the same.
    """
    num_classes, most = len(statistics.mean), min(MOST_COMPONENTS, len(statistics.mean) - 1)
    worth = int((statistics.variances > step * step * _LEAST_VARIANCE).sum())
    num_components = min(max(worth, 1), most, statistics.basis.shape[1])
    basis = statistics.basis[:, :num_components]
    unit = step / (QUARTERS * BASIS_SCALE)
    means = np.zeros((num_classes, num_components))
    means[statistics.seen] = np.rint(statistics.class_means @ basis / step * QUARTERS)
    tables = {
        "basis": np.rint(basis * BASIS_SCALE).astype(np.int8),
        "mean": np.clip(np.rint(statistics.mean / unit), -(2**31), 2**31 - 1).astype(np.int32),
        "class_means": np.clip(means, -(2**15), 2**15 - 1).astype(np.int16),
        "variances": (statistics.variances[:num_components] / step**2 + 1e-6).astype(np.float32),
    }
    num_columns = num_components + 2 * statistics.num_top
    signed = np.zeros(num_columns, bool)
    signed[:num_components] = True
    signed[num_components + statistics.num_top - 1 : -1] = True
    costs, groups = np.full((num_columns, 3), 16, np.uint8), np.ones(num_columns, np.uint8)

    def codec(penalty: float) -> TransformCodec:
        return TransformCodec(
            num_classes=num_classes,
            num_top=statistics.num_top,
            step=step,
            penalty=penalty,
            weight_scale=statistics.weight_scale,
            losses=statistics.losses,
            tables=TransformTables(**tables, costs=costs, groups=groups, **no_references()),
        )

    # What a value costs depends on how often it is chosen, and the choice on what it costs: iterate.
    symbols = _symbols(codec(0.0), statistics)
    for _ in range(_PASSES):
        costs = column_costs(symbols, signed)
        symbols = _symbols(codec(_PENALTY * step * step), statistics)
    costs = column_costs(symbols, signed)
    if group:
        groups = group_columns(costs, symbols)
    return codec(_PENALTY * step * step)


def _symbols(codec: TransformCodec, statistics: Statistics) -> np.ndarray:
    parts = zip(statistics.logits.split(_ENCODE_ROWS), statistics.labels.split(_ENCODE_ROWS), strict=True)
    return torch.cat([codec.quantised(logits, labels) for logits, labels in parts]).numpy()
