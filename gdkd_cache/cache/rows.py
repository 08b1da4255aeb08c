"""Which row of a cache each of a source's images is."""

import numpy as np

from gdkd_cache.data.source import FullSource
from gdkd_cache.errors import MismatchError
from gdkd_cache.limits import NO_LABEL
from gdkd_cache.schema import short
from gdkd_cache.store.reader import CacheReader


def match_rows(cache: CacheReader, source: FullSource) -> np.ndarray:
    """Find each of the source's rows in the cache by its key: int64 [source row].

    Raises:
        MismatchError: another number of classes, a key that the cache lacks, or another label.
    """
    num_classes = len(cache.manifest.identity.classes)
    if len(source.classes) != num_classes:
        raise MismatchError(
            f"{cache.path} has {num_classes} classes, source {source.name} has {len(source.classes)}; "
            "use the data that the cache was built from"
        )
    positions = {key: row for row, key in enumerate(cache.keys)}
    rows = np.array([positions.get(key, -1) for key in source.keys], np.int64)
    unknown = np.flatnonzero(rows < 0)
    if len(unknown):
        number = len(cache.keys)
        is_part = len(rows) - len(unknown) == number
        part = (
            f"the cache is of {number} of these: add the --subset that it was built with ({number}, or a file of keys)"
        )
        raise MismatchError(
            f"key {source.keys[int(unknown[0])]!r} of source {source.name} is not in {cache.path} "
            f"({len(unknown)} of {len(rows)} are not); "
            f"{part if is_part else 'use data that the cache was built from'}, or build a cache of this"
        )
    labels = cache.labels[rows]
    if labels.shape != source.labels.shape:
        raise MismatchError(
            f"{cache.path} has labels {list(labels.shape[1:])} a row, source {source.name} has "
            f"{list(source.labels.shape[1:])}; use the data that the cache was built from"
        )
    # What one of the two does not say, it does not contradict.
    wrong = np.flatnonzero((labels != source.labels) & (labels != NO_LABEL) & (source.labels != NO_LABEL))
    if len(wrong):
        row = int(wrong[0])
        raise MismatchError(
            f"key {source.keys[row]!r} has label {_named(source.labels[row], source)} in source {source.name} and "
            f"{_named(labels[row], source)} in {cache.path} ({len(wrong)} labels differ); use its own data"
        )
    return rows


def _named(label: np.ndarray | np.int64, source: FullSource) -> str:
    """A class id, and what people call it; several of them as they are."""
    is_class = label.ndim == 0 and 0 <= label < len(source.classes)
    return f"{label} ({short(source.shown_names[int(label)])})" if is_class else str(label)
