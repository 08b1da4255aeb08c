"""Join caches of different views of the same rows: every byte checked on the way, the manifest last."""

from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np

from gdkd_cache.cache.cache import Cache, open_cache
from gdkd_cache.errors import MismatchError, UsageError
from gdkd_cache.sharing.copy import CopyResult, publish
from gdkd_cache.sharing.parts import assemble, holding
from gdkd_cache.store.card import make_card
from gdkd_cache.store.differences import check_parts
from gdkd_cache.store.facts import Card


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
    caches = sorted(map(open_cache, sources), key=lambda part: part.view_numbers.start)
    first = caches[0]
    for part in caches:
        if part.manifest.identity.views is None:
            raise UsageError(f"{part.path} was packed, and its views have no numbers; pack all the logits at once")
        check_parts(part.path, part.manifest.identity, first.path, first.manifest.identity)
    _check_views(caches)
    shared = _shared(first)
    for part in caches[1:]:
        for name, value in _shared(part).items():
            if not np.array_equal(value, shared[name]):
                raise MismatchError(
                    f"{part.path} and {first.path} are not parts of one cache: their {name} differ; build both from "
                    "the same data, and the second with --codec-from the first"
                )
    for view in range(first.codec.num_references):
        held = [part for part, _ in holding(caches, view)]
        columns = [part.reference_columns(view) for part in held] if len(held) > 1 else []
        for part, own in zip(held[1:], columns[1:], strict=False):
            if not all(np.array_equal(column, columns[0][name]) for name, column in own.items()):
                raise MismatchError(
                    f"{part.path} and {held[0].path} are not parts of one cache: their views are predicted from view "
                    f"{view}, which differs; build both with --codec-from the cache that holds it"
                )
    numbers = range(first.view_numbers.start, caches[-1].view_numbers.stop)
    card = _card(caches, make_card(license, contact))
    return publish(assemble(caches, numbers, card), destination, [part.manifest.digest for part in caches])


def _check_views(caches: Sequence[Cache]) -> None:
    for one, two in pairwise(caches):
        end, start = one.view_numbers.stop, two.view_numbers.start
        if start < end:
            raise MismatchError(f"{one.path} and {two.path} both hold view {start}; pull --views takes a part of one")
        if start > end:
            missing = f"view {end} is" if start == end + 1 else f"views {end} to {start - 1} are"
            raise MismatchError(f"{missing} in none of the caches, between {one.path} and {two.path}")


def _shared(cache: Cache) -> dict[str, Any]:
    """What all views share, decoded: other library versions may compress it otherwise."""
    return {
        "keys": cache.keys,
        "labels": cache.labels,
        "decoded images": cache.source_probes(),
        "checks of the decoded images": cache.source_checks(),
        "sizes of the images": cache.image_sizes(),
        "codec tables": cache.codec.tables_bytes(),
    }


def _card(caches: Sequence[Cache], given: Card) -> Card:
    def stated(part: Cache, name: str) -> str | None:
        own = getattr(given, name)
        return getattr(part.manifest.identity.card, name) if own is None else own

    first = caches[0]
    names = ("license", "contact")
    for part, name in product(caches, names):
        here, there = stated(part, name), stated(first, name)
        if here != there:
            raise MismatchError(
                f"{name} is {here or 'not stated'!r} in {part.path} and {there or 'not stated'!r} in {first.path}; "
                f"say it with --{name}"
            )
    return Card(**{name: stated(first, name) for name in names})
