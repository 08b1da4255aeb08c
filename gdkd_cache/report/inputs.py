"""What a report is made from, read once for all its sections."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gdkd_cache.cache.cache import Cache
from gdkd_cache.cache.dataset import CachedDataset
from gdkd_cache.data.source import FullSource
from gdkd_cache.report.options import ReportOptions
from gdkd_cache.training.records.runs import Run


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the teacher said of some rows in some views.

    Attributes:
        rows: of the cache, int64 [row], rising.
        views: their numbers.
        logits: float32 [view, row, class].
        labels: int64 [row].
        is_whole: whether these are all rows and views of the cache.
    """

    rows: np.ndarray
    views: Sequence[int]
    logits: np.ndarray
    labels: np.ndarray
    is_whole: bool


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Attributes:
    options: what was asked for.
    cache: open.
    sample: of it.
    classes: names for people, in the order of class ids.
    source, dataset: the images and their views; None without `--data`.
    runs: trainings, in the order given.
    """

    options: ReportOptions
    cache: Cache
    sample: Sample
    classes: Sequence[str]
    source: FullSource | None
    dataset: CachedDataset | None
    runs: Sequence[Run]
