"""What in a place is a cache's own, by what it says itself: all that may be removed when another cache replaces it."""

import re
from collections.abc import Iterable
from contextlib import suppress

from gdkd_cache.codec.stored import codec_from_json
from gdkd_cache.errors import CacheError
from gdkd_cache.objects.objects import Objects
from gdkd_cache.schema import check_json, short, to_json
from gdkd_cache.store.card import CARD_NAMES
from gdkd_cache.store.layout import all_layouts, tables_layout
from gdkd_cache.store.manifest import (
    BUILD_NAME,
    MANIFEST_LIMIT,
    MANIFEST_NAME,
    REPLACED_NAME,
    Manifest,
    canonical_json,
    parse_json,
)

_LISTED = re.compile(rb'"([^"\\]{1,200})":\[\d+,"[0-9a-f]{64}"\]')  # also in what is damaged or cut
_ARRAY = "[a-z0-9_][a-z0-9_.-]*"
_OBJECT = re.compile(rf"(?:{_ARRAY}/)?zarr\.json|{_ARRAY}/c(?:/\d+)+|{'|'.join(map(re.escape, sorted(CARD_NAMES)))}")
_LEDGER = re.compile(r"ledger/\d+/\d+\.json")
_CLAIM = re.compile(r"claims/(?:[a-z0-9]+/){1,4}(?:\d+\.json|[0-9a-f]{32})")


def is_claim(name: str) -> bool:
    """Whether a name is that of a claim, which any build may have beside any cache."""
    return _CLAIM.fullmatch(name) is not None


def leftovers(names: Iterable[str], build: str) -> list[str]:
    """What a finished build leaves to be removed: its ledger, its claims, and those of builds that nobody works on."""
    claims = {name: name.split("/") for name in names if is_claim(name)}
    at_work = {parts[1] for parts in claims.values() if parts[2] == "beats"} - {build}
    ledger = [name for name in names if _LEDGER.fullmatch(name)]
    return [*ledger, *(name for name, parts in claims.items() if parts[1] not in at_work), REPLACED_NAME]


def belongings(objects: Objects, names: Iterable[str]) -> set[str]:
    """Which of the objects of a place are those of the cache, finished or not, that stands there: all of them.

    Raises:
        CacheError: others are there too; it names one.
    """
    names = set(names)
    ledger = {name for name in names if _LEDGER.fullmatch(name)}
    stated = {name: objects.read(name, MANIFEST_LIMIT) for name in names & {MANIFEST_NAME, BUILD_NAME, *ledger}}
    listed = {name.decode(errors="replace") for data in stated.values() for name in _LISTED.findall(data)}
    listed.update(read_replaced(objects))
    # Of its arrays there may be more: what was not recorded yet, or is listed where the manifest is damaged.
    arrays = {name.partition("/")[0] for name in listed if _OBJECT.fullmatch(name)}
    for name in stated.keys() - ledger:
        with suppress(CacheError):
            arrays |= _arrays(objects, Manifest.from_bytes(stated[name], name))
    own = {name for name in names if _OBJECT.fullmatch(name) and name.partition("/")[0] in arrays}
    own |= {*stated, *filter(is_claim, names), *({REPLACED_NAME} & names)}
    if foreign := sorted(names - own):
        raise CacheError(
            f"{objects.location} holds {short(foreign[0])} ({len(foreign)} such), which no manifest or ledger there "
            "lists: nothing was removed; move it away, or name another place"
        )
    return own


def _arrays(objects: Objects, manifest: Manifest) -> set[str]:
    """The names of a cache's arrays, and of the objects beside them.

    Raises:
        CacheError: tables that are damaged, or a codec of somebody's own.
    """
    layout, tables = tables_layout(manifest), None
    if layout is not None:
        found = {name: objects.read(name, manifest.objects[name].size) for name in layout.object_names()}
        tables = layout.decode(found)
    codec = codec_from_json(to_json(manifest.identity.codec), tables)
    layouts = all_layouts(manifest.identity, codec)
    return {"zarr.json", *(name.partition("/")[0] for name in CARD_NAMES), *layouts}


def read_replaced(objects: Objects) -> list[str]:
    """What was to be removed when a build that replaces a cache was interrupted; nothing where none was.

    Raises:
        CacheError: it is damaged.
    """
    if objects.size(REPLACED_NAME) is None:
        return []
    stored = parse_json(REPLACED_NAME, objects.read(REPLACED_NAME, MANIFEST_LIMIT))
    check_json(REPLACED_NAME, stored, {"names": [str]})
    forms = (_OBJECT, _LEDGER, _CLAIM, re.compile(re.escape(MANIFEST_NAME)))
    return [name for name in stored["names"] if any(form.fullmatch(name) for form in forms)]


def encode_replaced(names: Iterable[str]) -> bytes:
    """What `read_replaced` reads."""
    return canonical_json({"names": sorted(names)})
