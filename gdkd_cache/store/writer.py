"""Build a cache so that a crash at any instant loses at most the shard in flight.

Protocol: `build.json` (the identity) first; then for each (view, shard) its objects, each durable and read
back, and only then its ledger record; the manifest last. Records and `build.json` go once it stands.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gdkd_cache.codec import Codec, codec_from_json
from gdkd_cache.errors import CacheError, MismatchError
from gdkd_cache.store.arrays import group_metadata
from gdkd_cache.store.folder import Folder
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


class CacheWriter:
    """One build of one cache folder: new, resumed, or found complete. `begin` before anything is committed.

    Attributes:
        manifest: the manifest when the folder already holds this very cache complete, else None.
        fitted: the codec and its measured fidelity when an earlier run of this build has left them, else None.
    """

    def __init__(self, path: Path, identity: Identity, *, force: bool = False) -> None:
        """Look at the folder, and make it when it does not exist.

        Args:
            path: the cache folder.
            identity: what is built; its codec and fidelity are not compared, as the rest decides them.
            force: remove another cache or another unfinished build in this folder first.

        Raises:
            MismatchError: the folder holds another cache or build, and `force` is off; it says what differs.
            CacheError: the folder is not empty and holds no cache; `force` does not help.
            OSError: the folder cannot be written.
        """
        self._folder = Folder(path)
        self._identity = identity
        self.manifest: Manifest | None = None
        self.fitted: tuple[Codec, dict[str, Any]] | None = None
        if path.exists() and not path.is_dir():
            raise CacheError(f"{path}: a file is in the way; name a folder to build into")
        asked = parse_json(BUILD_NAME, canonical_json(identity.to_json()))
        found = self._found()
        if found is not None:
            later = {"codec": found.get("codec"), "fidelity": found.get("fidelity")}
            if differences := list(_differences(found, asked | later)):
                if not force:
                    raise MismatchError(
                        f"{path} holds another build: {'; '.join(differences[:4])}; "
                        "use the same options to resume it, another folder, or --force to replace it"
                    )
                self._clear()
            else:
                self.fitted = self._read_codec(dataclasses.replace(identity, **later))
        path.mkdir(parents=True, exist_ok=True)
        self._folder.remove_partials()

    def _clear(self) -> None:
        self._folder.delete(MANIFEST_NAME)  # first, so that nothing half-removed looks whole
        for child in sorted({name.split("/")[0] for name in self._folder.names()} - {BUILD_NAME}):
            self._folder.delete(child)
        self._folder.delete(BUILD_NAME)
        self.manifest = None

    def _read_codec(self, identity: Identity) -> tuple[Codec, dict[str, Any]] | None:
        layout = row_layouts(identity).get(TABLES)
        if layout is None:
            return codec_from_json(identity.codec), identity.fidelity
        if any(self._folder.size(name) is None for name in layout.object_names()):
            return None  # killed between build.json and the tables
        objects = {name: self._folder.read(name, MANIFEST_LIMIT) for name in layout.object_names()}
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
        self._folder.write(BUILD_NAME, canonical_json(self._identity.to_json()))
        for name, data in self._tables.items():
            self._folder.write(name, data)

    def _found(self) -> dict[str, Any] | None:
        """The identity of what the folder holds, complete or not; None for a new or empty folder."""
        if self._folder.size(MANIFEST_NAME) is not None:
            self.manifest = Manifest.from_bytes(self._folder.read(MANIFEST_NAME, MANIFEST_LIMIT))
            return self.manifest.identity.to_json()
        if self._folder.size(BUILD_NAME) is not None:
            return parse_json(BUILD_NAME, self._folder.read(BUILD_NAME, MANIFEST_LIMIT))
        if self._folder.root.exists() and self._folder.names():
            raise CacheError(f"{self._folder.root} is not empty and holds no cache; name another folder")
        return None

    def shards(self) -> Iterator[tuple[int, int, range]]:
        """All units of work in order: (view, shard, range of rows)."""
        step = self._identity.shard_rows
        for view in range(self._identity.num_views):
            for shard, first in enumerate(range(0, self._identity.num_rows, step)):
                yield view, shard, range(first, min(first + step, self._identity.num_rows))

    def committed(self, view: int, shard: int) -> bool:
        """Whether a shard's ledger record stands and every object in it has the recorded size."""
        records = self._records(view, shard)
        return bool(records) and all(self._folder.size(name) == record.size for name, record in records.items())

    def _records(self, view: int, shard: int) -> dict[str, ObjectRecord]:
        name = f"{LEDGER_NAME}/{view}/{shard}.json"
        if self._folder.size(name) is None:
            return {}
        stored = parse_json(name, self._folder.read(name, MANIFEST_LIMIT))
        return {name: ObjectRecord(size, sha256) for name, (size, sha256) in stored.items()}

    def commit(self, view: int, shard: int, columns: Mapping[str, np.ndarray]) -> None:
        """Write one shard's columns, each [row, ...], then its ledger record."""
        records: dict[str, list[int | str]] = {}
        for name, layout in self._layouts.items():
            first_row = shard * self._identity.shard_rows
            for object_name, data in layout.encode(columns[name], first_row=first_row, view=view).items():
                self._folder.write(object_name, data)
                record = ObjectRecord.of(data)
                records[object_name] = [record.size, record.sha256]
        self._folder.write(f"{LEDGER_NAME}/{view}/{shard}.json", canonical_json(records))

    def finish(self, keys: list[str], labels: np.ndarray, source_probes: np.ndarray | None = None) -> Manifest:
        """Write what all views share, then publish the manifest.

        Args:
            keys: key strings in row order.
            labels: class ids [row].
            source_probes: uint8 [row, 20], when views are replayed.

        Raises:
            CacheError: a shard is not committed.
        """
        objects: dict[str, ObjectRecord] = {}
        for view, shard, _ in self.shards():
            if not self.committed(view, shard):
                raise CacheError(f"{self._folder.root}: view {view}, shard {shard} is not committed; build again")
            objects |= self._records(view, shard)
        layouts = row_layouts(self._identity)
        shared = group_metadata()
        for layout in (*layouts.values(), *self._layouts.values()):
            shared |= layout.metadata()
        shared |= layouts[LABELS].encode(labels.astype(layouts[LABELS].column.dtype))
        shared |= layouts[KEYS].encode(encode_keys(keys))
        if source_probes is not None:
            shared |= layouts[SOURCE_PROBE].encode(source_probes)
        for name, data in shared.items():
            self._folder.write(name, data)
        for name, data in (shared | self._tables).items():
            objects[name] = ObjectRecord.of(data)
        manifest = Manifest(self._identity, objects)
        self._folder.write(MANIFEST_NAME, manifest.to_bytes())
        self._clean()
        return manifest

    def _clean(self) -> None:
        self._folder.delete(LEDGER_NAME)
        self._folder.delete(BUILD_NAME)


def _differences(found: Any, asked: Any, path: str = "") -> Iterator[str]:
    """One phrase for each leaf in which two JSON values differ."""
    if isinstance(found, dict) and isinstance(asked, dict):
        for key in sorted(found.keys() | asked.keys()):
            yield from _differences(found.get(key), asked.get(key), f"{path}.{key}" if path else key)
    elif found != asked:
        yield f"{path} is {_short(found)} there, {_short(asked)} asked"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
