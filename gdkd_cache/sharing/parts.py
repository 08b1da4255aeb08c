"""Parts of one cache: caches that differ in nothing but which of its views they hold, so that they cut and join."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from gdkd_cache.objects.record import ObjectRecord
from gdkd_cache.store.arrays import ArrayLayout
from gdkd_cache.store.card import CARD_NAMES, card_objects
from gdkd_cache.store.facts import Card
from gdkd_cache.store.layout import reference_layouts, view_layouts
from gdkd_cache.store.manifest import Manifest
from gdkd_cache.store.reader import CacheReader


@dataclass(frozen=True)
class Assembly:
    """A cache whose objects lie in others: its manifest, and what reads an object of it, every byte checked."""

    manifest: Manifest
    read: Callable[[str], bytes]


def whole_cache(cache: CacheReader) -> Assembly:
    """A cache as it stands."""
    return Assembly(cache.manifest, cache.read)


def holding(caches: Sequence[CacheReader], view: int) -> Iterator[tuple[CacheReader, dict[str, ArrayLayout]]]:
    """The caches that hold a view that predicts others, and their arrays of it by column name."""
    for part in caches:
        if view in part.manifest.identity.view_numbers:
            yield part, part.layouts
        elif view < min(part.manifest.identity.view_numbers.start, part.codec.num_references):
            yield part, part.reference_layouts


def assemble(caches: Sequence[CacheReader], numbers: range, card: Card) -> Assembly:
    """The cache of some views of caches that are parts of one; what all views share is taken from the first.

    An object of a view keeps its bytes; only the view's index in its name is another. Views that predict those of the
    new cache and come before them are taken along.

    Args:
        caches: caches that `check_parts` lets pass, none with a view of another.
        numbers: views that they hold.
        card: of the new cache.

    Raises:
        CacheError: a manifest does not list an object of its arrays.
    """
    first = caches[0]
    identities = [part.manifest.identity for part in caches]
    identity = replace(identities[0].of_views(numbers, *identities[1:]), card=card)
    own = card_objects(identity)
    origins = {name: (first, name) for name in first.manifest.objects.keys() - CARD_NAMES}
    for name, layout in view_layouts(identity, first.codec).items():
        own |= layout.metadata()
        for view in first.manifest.identity.view_numbers:
            for there in first.layouts[name].object_names(view):
                origins.pop(there, None)
        for part in caches:
            for view in set(part.manifest.identity.view_numbers) & set(numbers):
                there = part.layouts[name].object_names(view)
                origins |= {here: (part, old) for here, old in zip(layout.object_names(view), there, strict=True)}
    for layout in first.reference_layouts.values():
        for name in layout.all_names():
            origins.pop(name, None)
    for name, layout in reference_layouts(identity, first.codec).items():
        own |= layout.metadata()
        for view in range(layout.num_views or 0):
            part, theirs = next(holding(caches, view))
            names = zip(layout.object_names(view), theirs[name].object_names(view), strict=True)
            origins |= {here: (part, old) for here, old in names}
    objects = {name: part.record(old) for name, (part, old) in origins.items()}
    objects |= {name: ObjectRecord.of(data) for name, data in own.items()}

    def read(name: str) -> bytes:
        if name in own:
            return own[name]
        part, old = origins[name]
        return part.read(old)

    return Assembly(Manifest(identity, objects), read)
