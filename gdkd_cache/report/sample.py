"""What a report reads of a cache: all of a small one, of a large one as many rows and views as memory bears."""

import numpy as np

from gdkd_cache.cache.cache import Cache
from gdkd_cache.errors import UsageError
from gdkd_cache.progress import progress
from gdkd_cache.report.inputs import Sample

_MOST_VALUES = 2**26
"""Logits of a sample: 256 MiB."""
_DECODED = 2**22
_FEWEST_VIEWS = 4


def read_sample(cache: Cache, *, most_values: int = _MOST_VALUES) -> Sample:
    """Read the logits of some rows in some views, both spread evenly over the cache.

    Of a cache that is too large views are left out first, down to four of them, and then rows.

    Args:
        cache: open, of rows of one cell.
        most_values: logits that it may hold, so many times 4 bytes.

    Raises:
        CacheError: the cache is damaged.
        UsageError: some of the rows have no label.
    """
    if unlabelled := cache.manifest.identity.data.unlabelled:
        raise UsageError(f"{unlabelled} rows of {cache.path} have no label, and a report tells how right a teacher is")
    rows, views = _chosen(cache, most_values)
    logits = np.empty((len(views), len(rows), cache.num_classes), np.float32)
    step = max(1, _DECODED // cache.num_classes)
    with progress("read", len(views), "views") as advance:
        for number, view in enumerate(views):
            loaded = cache.view(view)
            for start in range(0, len(rows), step):
                logits[number, start : start + step] = loaded.logits(rows[start : start + step]).numpy()
            advance(1)
    is_whole = logits.shape[:2] == (cache.num_views, cache.num_rows)
    return Sample(rows=rows, views=views, logits=logits, labels=cache.labels[rows], is_whole=is_whole)


def _chosen(cache: Cache, most_values: int) -> tuple[np.ndarray, list[int]]:
    """The rows, int64 rising, and views that `read_sample` reads."""
    pairs = max(1, most_values // cache.num_classes)
    num_views = min(cache.num_views, max(_FEWEST_VIEWS, pairs // cache.num_rows))
    num_rows = min(cache.num_rows, max(1, pairs // num_views))
    rows = np.linspace(0, cache.num_rows - 1, num_rows).round().astype(np.int64)
    numbers = np.linspace(0, cache.num_views - 1, num_views).round().astype(np.int64)
    return rows, [cache.view_numbers[number] for number in numbers.tolist()]
