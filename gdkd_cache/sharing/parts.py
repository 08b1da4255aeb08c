"""Parts of one cache: caches that differ in nothing but which of its views they hold, so that they cut and join."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gdkd_cache.objects.names import README_NAME
from gdkd_cache.objects.record import ObjectRecord
from gdkd_cache.store.card import readme
from gdkd_cache.store.layout import view_layouts
from gdkd_cache.store.manifest import Identity, Manifest
from gdkd_cache.store.reader import CacheReader


@dataclass(frozen=True)
class Assembly:
    """A cache whose objects lie in others: its manifest, and what reads an object of it, every byte checked."""

    manifest: Manifest
    read: Callable[[str], bytes]


def whole_cache(reader: CacheReader) -> Assembly:
    """A cache as it stands."""
    return Assembly(reader.manifest, reader.read)


def assemble(readers: Sequence[CacheReader], numbers: range, card: dict[str, str]) -> Assembly:
    """The cache of some views of caches that are parts of one; what all views share is taken from the first.

    An object of a view keeps its bytes; only the view's index in its name is another.

    Args:
        readers: caches that `check_parts` lets pass, none with a view of another.
        numbers: views that they hold.
        card: of the new cache.

    Raises:
        CacheError: a manifest does not list an object of its arrays.
    """
    first = readers[0]
    identity = _of_views(first.manifest.identity, numbers, [part.manifest.identity for part in readers])
    identity = replace(identity, card=card)
    own = {README_NAME: readme(identity)}
    origins = {name: (first, name) for name in first.manifest.objects}
    for name, layout in view_layouts(identity, first.codec).items():
        own |= layout.metadata()
        for view in first.manifest.identity.view_numbers:
            for there in first.layouts[name].object_names(view):
                origins.pop(there, None)
        for part in readers:
            for view in set(part.manifest.identity.view_numbers) & set(numbers):
                there = part.layouts[name].object_names(view)
                origins |= {here: (part, old) for here, old in zip(layout.object_names(view), there, strict=True)}
    objects = {name: part.record(old) for name, (part, old) in origins.items()}
    objects |= {name: ObjectRecord.of(data) for name, data in own.items()}

    def read(name: str) -> bytes:
        if name in own:
            return own[name]
        part, old = origins[name]
        return part.read(old)

    return Assembly(Manifest(identity, objects), read)


def _of_views(identity: Identity, numbers: range, parts: Sequence[Identity]) -> Identity:
    """The identity with these views, and with what built them."""
    views = None if identity.views is None else identity.views | {"first": numbers.start}
    runs: list[dict[str, Any]] = []
    for run in sorted((run for part in parts for run in _runs(part)), key=lambda run: run["first"]):
        held = range(max(run["first"], numbers.start), min(run["first"] + run["num_views"], numbers.stop))
        extent = {"first": held.start, "num_views": len(held)}
        if runs and runs[-1] | extent == run | extent:
            runs[-1]["num_views"] += len(held)
        elif held:
            runs.append(run | extent)
    build = {"parts": runs}
    if len(runs) == 1:
        build = {name: value for name, value in runs[0].items() if name not in ("first", "num_views")}
    return replace(identity, num_views=len(numbers), views=views, build=build)


def _runs(identity: Identity) -> list[dict[str, Any]]:
    """How runs of views were built: the `build` of each, with its `first` and `num_views`."""
    whole = {"first": identity.view_numbers.start, "num_views": identity.num_views, **identity.build}
    return [dict(run) for run in identity.build.get("parts", [whole])]
