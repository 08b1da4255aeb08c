"""Join caches of different views of the same rows: every byte checked on the way, the manifest last."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gdkd_cache.cache.cache import open_cache
from gdkd_cache.errors import MismatchError, UsageError
from gdkd_cache.sharing.copy import CopyResult, publish
from gdkd_cache.sharing.parts import assemble
from gdkd_cache.store.card import make_card
from gdkd_cache.store.differences import check_parts
from gdkd_cache.store.reader import CacheReader


def merge(
    sources: Sequence[str | Path],
    destination: str | Path,
    *,
    license: str | None = None,
    contact: str | None = None,
) -> CopyResult:
    """Join caches that differ in nothing but their views, or go on with a merge that was interrupted.

    The result is, to the byte, the cache that one build of all the views gives on one machine with the same codec
    (which `auto` may choose otherwise for so many views). Where the parts were built by other library versions or
    devices, the manifest says which for which views.

    Args:
        sources: two caches or more, folders or URLs, whose views follow on each other; in any order.
        destination: a folder or URL that is empty, or holds this very merge, complete or not.
        license, contact: of the result; None takes the parts', who must agree.

    Raises:
        UsageError: fewer than two caches, packed logits, which have no view numbers, or a read-only destination.
        CacheError: a source is no cache or is damaged (it names the object), or the destination holds something else.
        MismatchError: the caches are not parts of one, or a view is in two of them or in none; or another cache,
            build or copy is in the destination.
        OSError, StoreError: a place cannot be read or written; the same merge resumes.
    """
    if len(sources) < 2:
        raise UsageError(f"{len(sources)} cache to merge; give two or more, of different views")
    readers = sorted(
        (open_cache(source).reader for source in sources), key=lambda part: part.manifest.identity.view_numbers.start
    )
    first = readers[0]
    for part in readers:
        if part.manifest.identity.views is None:
            raise UsageError(f"{part.path} was packed, and its views have no numbers; pack all the logits at once")
        check_parts(part.path, part.manifest.identity, first.path, first.manifest.identity)
    _check_views(readers)
    shared = _shared(first)
    for part in readers[1:]:
        for name, value in _shared(part).items():
            if not np.array_equal(value, shared[name]):
                raise MismatchError(
                    f"{part.path} and {first.path} are not parts of one cache: their {name} differ; build both from "
                    "the same data, and the second with --codec-from the first"
                )
    numbers = range(first.manifest.identity.view_numbers.start, readers[-1].manifest.identity.view_numbers.stop)
    card = _card(readers, make_card(license, contact))
    return publish(assemble(readers, numbers, card), destination, [part.manifest.digest for part in readers])


def _check_views(readers: Sequence[CacheReader]) -> None:
    for one, two in pairwise(readers):
        end, start = one.manifest.identity.view_numbers.stop, two.manifest.identity.view_numbers.start
        if start < end:
            raise MismatchError(f"{one.path} and {two.path} both hold view {start}; pull --views takes a part of one")
        if start > end:
            missing = f"view {end} is" if start == end + 1 else f"views {end} to {start - 1} are"
            raise MismatchError(f"{missing} in none of the caches, between {one.path} and {two.path}")


def _shared(reader: CacheReader) -> dict[str, Any]:
    """What all views share, decoded: other library versions may compress it otherwise."""
    return {
        "keys": reader.keys(),
        "labels": reader.labels(),
        "decoded images": reader.source_probes(),
        "codec tables": reader.codec.tables_bytes(),
    }


def _card(readers: Sequence[CacheReader], given: dict[str, str]) -> dict[str, str]:
    cards = [part.manifest.identity.card | given for part in readers]
    for part, card in zip(readers, cards, strict=True):
        for name in sorted(card.keys() | cards[0].keys()):
            if card.get(name) != cards[0].get(name):
                raise MismatchError(
                    f"{name} is {card.get(name, 'not stated')!r} in {part.path} and "
                    f"{cards[0].get(name, 'not stated')!r} in {readers[0].path}; say it with --{name}"
                )
    return cards[0]
