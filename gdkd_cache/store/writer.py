"""Build a cache so that a crash at any instant loses at most the shard in flight.

Protocol: `build.json` (the identity) first; then for each (view, shard) its objects, each durable and read
back, and only then its ledger record; the manifest last. Records and `build.json` go once it stands. `build.json` and
the manifest are created only where none stands, so that of two different builds in one place one is refused.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gdkd_cache.codec import Codec, codec_from_json
from gdkd_cache.errors import CacheError, MismatchError
from gdkd_cache.store.arrays import group_metadata
from gdkd_cache.store.card import readme
from gdkd_cache.store.layout import KEYS, LABELS, SOURCE_PROBE, TABLES, encode_keys, row_layouts, view_layouts
from gdkd_cache.store.manifest import (
    BUILD_NAME,
    LEDGER_NAME,
    MANIFEST_LIMIT,
    MANIFEST_NAME,
    Identity,
    Manifest,
    ObjectRecord,
    canonical_json,
    parse_json,
)
from gdkd_cache.store.names import README_NAME
from gdkd_cache.store.objects import open_objects


class CacheWriter:
    """One build of one cache: new, resumed, or found complete. `begin` before anything is committed.

    Attributes:
        manifest: the manifest when the place already holds this very cache complete, else None.
        fitted: the codec and its measured fidelity when an earlier run of this build has left them, else None.
    """

    def __init__(self, path: str | Path, identity: Identity, *, force: bool = False) -> None:
        """Look at the place, and make the folder when it does not exist.

        Args:
            path: the cache folder, or the URL of an object store.
            identity: what is built; its codec and fidelity are empty where the rest decides them.
            force: remove another cache or another unfinished build in this place first.

        Raises:
            MismatchError: the place holds another cache or build, and `force` is off; it says what differs.
            CacheError: the place is not empty and holds no cache; `force` does not help.
            OSError, StoreError: the place cannot be written.
        """
        self._objects = open_objects(path)
        self._sizes = self._objects.sizes()
        self._ledger: dict[tuple[int, int], dict[str, ObjectRecord]] = {}
        self._identity = identity
        self.manifest: Manifest | None = None
        self.fitted: tuple[Codec, dict[str, Any]] | None = None
        asked = parse_json(BUILD_NAME, canonical_json(identity.to_json()))
        found = self._found()
        if found is not None:
            # Without a codec of its own, a build takes what an earlier run of it has fitted.
            later = {} if identity.codec else {"codec": found.get("codec"), "fidelity": found.get("fidelity")}
            card = {} if self.manifest else {"card": found.get("card")}  # of the run that finishes
            if differing := [
                f"{what} is {old} there, {new} asked" for what, old, new in differences(found, asked | later | card)
            ]:
                if not force:
                    raise MismatchError(
                        f"{self._objects.location} holds another build: {'; '.join(differing[:4])}; "
                        "use the same options to resume it, another place, or --force to replace it"
                    )
                self._clear()
                found = None
            else:
                self.fitted = self._read_codec(dataclasses.replace(identity, **later))
        self._resumed = found is not None
        self._objects.prepare()

    def _clear(self) -> None:
        self._objects.delete(MANIFEST_NAME)  # first, so that nothing half-removed looks whole
        for child in sorted({name.split("/")[0] for name in self._sizes} - {MANIFEST_NAME, BUILD_NAME}):
            self._objects.delete(child)
        self._objects.delete(BUILD_NAME)
        self._sizes = {}
        self.manifest = None

    def _read_codec(self, identity: Identity) -> tuple[Codec, dict[str, Any]] | None:
        layout = row_layouts(identity).get(TABLES)
        if layout is None:
            return codec_from_json(identity.codec), identity.fidelity
        if any(name not in self._sizes for name in layout.object_names()):
            return None  # killed between build.json and the tables
        objects = {name: self._objects.read(name, MANIFEST_LIMIT) for name in layout.object_names()}
        return codec_from_json(identity.codec, layout.decode(objects)), identity.fidelity

    def begin(self, codec: Codec, fidelity: dict[str, Any]) -> None:
        """Write the identity, and the codec's tables, before any shard."""
        self._identity = dataclasses.replace(self._identity, codec=codec.to_json(), fidelity=fidelity)
        self._layouts = view_layouts(self._identity, codec)
        layout = row_layouts(self._identity).get(TABLES)
        self._tables = {} if layout is None else layout.encode(codec.tables_bytes())
        if self.manifest is not None:
            self._clean()
            return
        claim = canonical_json(self._identity.to_json())
        if self._resumed:
            self._objects.write(BUILD_NAME, claim)
        elif not self._objects.create(BUILD_NAME, claim):
            raise MismatchError(
                f"{self._objects.location}: another build began here meanwhile; name another place for this one"
            )
        for name, data in self._tables.items():
            self._objects.write(name, data)

    def _found(self) -> dict[str, Any] | None:
        """The identity of what the place holds, complete or not; None for a new or empty place."""
        if MANIFEST_NAME in self._sizes:
            self.manifest = Manifest.from_bytes(self._objects.read(MANIFEST_NAME, MANIFEST_LIMIT))
            return self.manifest.identity.to_json()
        if BUILD_NAME in self._sizes:
            return parse_json(BUILD_NAME, self._objects.read(BUILD_NAME, MANIFEST_LIMIT))
        if self._sizes:
            raise CacheError(f"{self._objects.location} is not empty and holds no cache; name another place")
        return None

    def shards(self) -> Iterator[tuple[int, int, range]]:
        """All units of work in order: (view, shard, range of rows)."""
        step = self._identity.shard_rows
        for view in self._identity.view_numbers:
            for shard, first in enumerate(range(0, self._identity.num_rows, step)):
                yield view, shard, range(first, min(first + step, self._identity.num_rows))

    def committed(self, view: int, shard: int) -> bool:
        """Whether a shard's ledger record stands and every object in it has the recorded size."""
        records = self._records(view, shard)
        return bool(records) and all(self._sizes.get(name) == record.size for name, record in records.items())

    def _records(self, view: int, shard: int) -> dict[str, ObjectRecord]:
        name = f"{LEDGER_NAME}/{view}/{shard}.json"
        if (view, shard) not in self._ledger and name in self._sizes:
            stored = parse_json(name, self._objects.read(name, MANIFEST_LIMIT))
            self._ledger[view, shard] = {name: ObjectRecord(size, sha) for name, (size, sha) in stored.items()}
        return self._ledger.get((view, shard), {})

    def commit(self, view: int, shard: int, columns: Mapping[str, np.ndarray]) -> None:
        """Write one shard's columns, each [row, ...], then its ledger record."""
        records: dict[str, ObjectRecord] = {}
        for name, layout in self._layouts.items():
            first_row = shard * self._identity.shard_rows
            for object_name, data in layout.encode(columns[name], first_row=first_row, view=view).items():
                self._objects.write(object_name, data)
                records[object_name] = ObjectRecord.of(data)
        stored = {name: [record.size, record.sha256] for name, record in records.items()}
        self._objects.write(f"{LEDGER_NAME}/{view}/{shard}.json", canonical_json(stored))
        self._ledger[view, shard] = records

    def finish(self, keys: list[str], labels: np.ndarray, source_probes: np.ndarray | None = None) -> Manifest:
        """Write what all views share, then publish the manifest.

        Args:
            keys: key strings in row order.
            labels: class ids [row].
            source_probes: uint8 [row, 20], when views are replayed.

        Raises:
            CacheError: a shard is not committed.
            MismatchError: another build has published another cache here meanwhile.
        """
        self._sizes = self._objects.sizes()
        objects: dict[str, ObjectRecord] = {}
        for view, shard, _ in self.shards():
            if not self.committed(view, shard):
                raise CacheError(f"{self._objects.location}: view {view}, shard {shard} is not committed; build again")
            objects |= self._records(view, shard)
        layouts = row_layouts(self._identity)
        shared = group_metadata() | {README_NAME: readme(self._identity)}
        for layout in (*layouts.values(), *self._layouts.values()):
            shared |= layout.metadata()
        shared |= layouts[LABELS].encode(labels.astype(layouts[LABELS].column.dtype))
        shared |= layouts[KEYS].encode(encode_keys(keys))
        if source_probes is not None:
            shared |= layouts[SOURCE_PROBE].encode(source_probes)
        if MANIFEST_NAME not in self._sizes:  # what another build has published is left as it is
            for name, data in shared.items():
                self._objects.write(name, data)
        for name, data in (shared | self._tables).items():
            objects[name] = ObjectRecord.of(data)
        manifest = Manifest(self._identity, objects)
        if not self._objects.create(MANIFEST_NAME, manifest.to_bytes()):
            raise MismatchError(
                f"{self._objects.location}: another build has published another cache here meanwhile; "
                "name another place, or --force to replace it"
            )
        self._clean()
        return manifest

    def _clean(self) -> None:
        self._objects.delete(LEDGER_NAME)
        self._objects.delete(BUILD_NAME)


def differences(found: Any, asked: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Each leaf in which two JSON values differ: its path, and both as short texts."""
    if isinstance(found, dict) and isinstance(asked, dict):
        for key in sorted(found.keys() | asked.keys()):
            yield from differences(found.get(key), asked.get(key), f"{path}.{key}" if path else key)
    elif found != asked:
        yield path, _short(found), _short(asked)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
