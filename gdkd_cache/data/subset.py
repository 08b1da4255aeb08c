"""A part of a source, by key: it names the same rows wherever the data lie, and in whatever order."""

from pathlib import Path

import numpy as np

from gdkd_cache.data.source import FullSource
from gdkd_cache.data.sources.lists import read_list
from gdkd_cache.errors import SourceError, UsageError
from gdkd_cache.limits import NO_LABEL
from gdkd_cache.schema import short
from gdkd_cache.seeding import hash_keys

_FILE_BYTES = 2**28
"""The keys of ImageNet are a fifth of it."""


def subset(source: FullSource, chosen: str | int) -> FullSource:
    """Some rows of a source, in its order, with all its classes; its digest is that of these rows.

    Args:
        source: the whole.
        chosen: a number, in digits or as one: so many rows of the smallest hash of their keys, which are among those of
            any larger number. Or the path of a text file: the rows of its keys, one a line.

    Raises:
        UsageError: the number is not in 1..rows.
        SourceError: the file cannot be read, has no key, or has keys that are not the source's.
    """
    return source.take(_chosen("subset", source, chosen))


def labelled(source: FullSource, chosen: str | int) -> FullSource:
    """A source of which some rows alone keep their labels; the others have none.

    Args:
        source: with labels.
        chosen: which rows, as for `subset`.

    Raises:
        UsageError: its rows have masks; or as `subset`.
        SourceError: as `subset`.
    """
    if source.has_masks:
        raise UsageError(f"labelled is {chosen}; source {source.name} has masks, of which no part is hidden")
    rows = _chosen("labelled", source, chosen)
    labels = np.full_like(source.labels, NO_LABEL)
    labels[rows] = source.labels[rows]
    return source.with_labels(labels)


def _chosen(what: str, source: FullSource, chosen: str | int) -> np.ndarray:
    """The rows that `subset` takes, int64, rising."""
    if isinstance(chosen, int) or (chosen.isascii() and chosen.isdigit()):
        number = int(chosen)
        if not 1 <= number <= len(source):
            raise UsageError(f"{what} is {chosen}; source {source.name} has {len(source)} rows: it must be 1 to that")
        return np.sort(np.argsort(hash_keys(source.keys), kind="stable")[:number])
    listed = dict.fromkeys(filter(None, read_list(Path(chosen), _FILE_BYTES).split("\n")))
    rows = np.array([row for row, key in enumerate(source.keys) if key in listed], np.int64)
    if len(rows) < len(listed):
        known = set(source.keys)
        unknown = next(key for key in listed if key not in known)
        raise SourceError(
            f"{what} {chosen}: {len(listed) - len(rows)} of its {len(listed)} keys are not in source {source.name}; "
            f"the first is {short(unknown)}, where the source's first is {short(source.keys[0])}"
        )
    if not len(rows):
        raise SourceError(f"{what} {chosen} is empty; it must hold keys of source {source.name}, one a line")
    return rows
