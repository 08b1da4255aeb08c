"""Build a cache so that a crash at any instant loses at most the shard in flight.

Protocol: `build.json` first, a manifest of the identity and the codec's tables alone; then for each (view, shard) its
objects, each durable and read back, and only then its ledger record, which names the build and holds each object's size
and checksum; the manifest last. Records and `build.json` go once it stands. What an earlier run left is used only if
every byte of it is what was recorded.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gdkd_cache.codec import Codec, codec_from_json
from gdkd_cache.errors import CacheError, MismatchError
from gdkd_cache.schema import check_json, short
from gdkd_cache.store.folder import Folder
from gdkd_cache.store.layout import (
    TABLES,
    check_objects,
    encode_metadata,
    encode_rows,
    encode_shard,
    row_layouts,
    shard_objects,
    shards_of,
    tables_layout,
    view_layouts,
)
from gdkd_cache.store.manifest import (
    BUILD_NAME,
    LEDGER_NAME,
    MANIFEST_LIMIT,
    MANIFEST_NAME,
    Identity,
    Manifest,
    ObjectRecord,
    canonical_json,
    objects_from_json,
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
            force: remove another cache, another unfinished build or a damaged one in this folder first.

        Raises:
            MismatchError: the folder holds another cache or build, and `force` is off; it says what differs.
            CacheError: the folder is not empty and holds no cache, where `force` does not help; or a damaged one.
            OSError: the folder cannot be written.
        """
        self._folder = Folder(path)
        self._identity = identity
        self.manifest: Manifest | None = None
        self.fitted: tuple[Codec, dict[str, Any]] | None = None
        if path.exists() and not path.is_dir():
            raise CacheError(f"{path}: a file is in the way; name a folder to build into")
        self._verified: dict[tuple[int, int], dict[str, ObjectRecord]] = {}
        if (found := self._found(force)) is not None:
            if differences := differences_between(found.identity, identity):
                if not force:
                    raise MismatchError(
                        f"{path} holds another build: {'; '.join(differences[:4])}; "
                        "use the same options to resume it, another folder, or --force to replace it"
                    )
                self._clear()
            else:
                self.fitted = self._read_codec(found)
        self._folder.create()
        self._folder.remove_partials()

    def _clear(self) -> None:
        self._folder.delete(MANIFEST_NAME)  # first, so that nothing half-removed looks whole
        for child in sorted({name.split("/")[0] for name in self._folder.names()} - {BUILD_NAME}):
            self._folder.delete(child)
        self._folder.delete(BUILD_NAME)
        self.manifest = None

    def _read_codec(self, found: Manifest) -> tuple[Codec, dict[str, Any]] | None:
        identity = found.identity
        layout = tables_layout(found)
        if layout is None:
            return codec_from_json(identity.codec), identity.fidelity
        try:
            objects = {name: self._folder.read(name, found.objects[name].size) for name in layout.object_names()}
            for name, data in objects.items():
                found.objects[name].check(name, ObjectRecord.of(data))
        except CacheError:
            return None  # killed between build.json and the tables, or damaged since: calibration gives them again
        return codec_from_json(identity.codec, layout.decode(objects)), identity.fidelity

    def begin(self, codec: Codec, fidelity: dict[str, Any]) -> None:
        """Write the identity, and the codec's tables, before any shard."""
        self._identity = dataclasses.replace(self._identity, codec=codec.to_json(), fidelity=fidelity)
        self._codec, self._layouts = codec, view_layouts(self._identity, codec)
        layout = row_layouts(self._identity).get(TABLES)
        self._tables = {} if layout is None else layout.encode(codec.tables_bytes())
        if self.manifest is not None:
            self._clean()
            return
        started = Manifest(self._identity, {name: ObjectRecord.of(data) for name, data in self._tables.items()})
        self._build = started.digest
        self._folder.write(BUILD_NAME, started.to_bytes())
        for name, data in self._tables.items():
            self._folder.write(name, data)

    def _found(self, force: bool) -> Manifest | None:
        """What the folder holds, complete (then it is `manifest`) or not; None for a new, empty or cleared folder."""
        for name in (MANIFEST_NAME, BUILD_NAME):
            if self._folder.exists(name):
                try:
                    found = Manifest.from_bytes(self._folder.read(name, MANIFEST_LIMIT), name)
                except CacheError as error:
                    # A damaged manifest of ours may go; a file of the same name may be of something precious.
                    if not force or b'"gdkd-cache/' not in self._folder.read(name, MANIFEST_LIMIT):
                        raise CacheError(f"{self._folder.root}: {error}; or build it again with --force") from None
                    return self._clear()
                self.manifest = found if name == MANIFEST_NAME else None
                return found
        if self._folder.root.exists() and self._folder.names():
            raise CacheError(f"{self._folder.root} is not empty and holds no cache; name another folder")
        return None

    def shards(self) -> Iterator[tuple[int, int, range]]:
        """All units of work in order: (view, shard, range of rows)."""
        return shards_of(self._identity)

    def committed(self, view: int, shard: int) -> bool:
        """Whether this run committed a shard, or an earlier run of this very build did and every byte of it stands.

        A ledger record that is damaged, of another build or of another shard does not count: the shard is built again.
        """
        if (view, shard) not in self._verified:
            name = _ledger_name(view, shard)
            try:
                stored = parse_json(name, self._folder.read(name, MANIFEST_LIMIT))
                check_json(name, stored, {"build": str, "objects": {str: [object]}})
                records = objects_from_json(name, stored["objects"])
                if stored["build"] != self._build or [*records] != sorted(shard_objects(self._layouts, view, shard)):
                    return False
                for name, record in records.items():
                    record.check(name, self._folder.record(name, record.size))
            except CacheError:
                return False
            self._verified[view, shard] = records
        return True

    def commit(self, view: int, shard: int, columns: Mapping[str, np.ndarray]) -> None:
        """Write one shard's columns, each [row, ...], then its ledger record."""
        records: dict[str, ObjectRecord] = {}
        for name, data in encode_shard(self._layouts, view, shard, columns).items():
            self._folder.write(name, data)
            records[name] = ObjectRecord.of(data)
        objects = {name: [record.size, record.sha256] for name, record in records.items()}
        self._folder.write(_ledger_name(view, shard), canonical_json({"build": self._build, "objects": objects}))
        self._verified[view, shard] = records

    def finish(self, keys: list[str], labels: np.ndarray) -> Manifest:
        """Write what all views share, then publish the manifest.

        Args:
            keys: key strings in row order.
            labels: class ids [row].

        Raises:
            CacheError: a shard is not committed.
        """
        objects: dict[str, ObjectRecord] = {}
        for view, shard, _ in self.shards():
            if not self.committed(view, shard):
                raise CacheError(f"{self._folder.root}: view {view}, shard {shard} is not committed; build again")
            objects |= self._verified[view, shard]
        shared = encode_metadata(self._identity, self._codec) | encode_rows(self._identity, keys, labels)
        for name, data in shared.items():
            self._folder.write(name, data)
        for name, data in (shared | self._tables).items():
            objects[name] = ObjectRecord.of(data)
        manifest = Manifest(self._identity, objects)
        check_objects(manifest, row_layouts(self._identity) | self._layouts)
        self._folder.write(MANIFEST_NAME, manifest.to_bytes())
        self._clean()
        return manifest

    def _clean(self) -> None:
        self._folder.delete(LEDGER_NAME)
        self._folder.delete(BUILD_NAME)


def _ledger_name(view: int, shard: int) -> str:
    return f"{LEDGER_NAME}/{view}/{shard}.json"


def differences_between(found: Identity, asked: Identity) -> list[str]:
    """One phrase for each field in which two identities differ, but for the codec and its fidelity, which follow."""
    there, here = (parse_json(BUILD_NAME, canonical_json(identity.to_json())) for identity in (found, asked))
    return list(_differences(there, here | {name: there[name] for name in ("codec", "fidelity")}))


def _differences(found: Any, asked: Any, path: str = "") -> Iterator[str]:
    """One phrase for each leaf in which two JSON values differ."""
    if isinstance(found, dict) and isinstance(asked, dict):
        for key in sorted(found.keys() | asked.keys()):
            yield from _differences(found.get(key), asked.get(key), f"{path}.{key}" if path else key)
    elif found != asked:
        yield f"{path} is {short(found)} there, {short(asked)} asked"
