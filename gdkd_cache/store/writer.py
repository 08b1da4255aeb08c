"""Build a cache so that a crash at any instant loses at most the shard in flight.

Protocol: `build.json` first, a manifest of the identity and the codec's tables alone; then for each (view, shard) its
objects, each durable and read back, and only then its ledger record, which names the build and holds each object's size
and checksum; the manifest last. Records and `build.json` go once it stands. What an earlier run left is used only if
every byte of it is what was recorded. `build.json` and the manifest are created only where none stands, so that of two
different builds in one place one is refused; processes of the same build share its shards by claims (`claims.py`).
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from gdkd_cache.codec.columns import Codec
from gdkd_cache.codec.stored import codec_from_json
from gdkd_cache.errors import CacheError, MismatchError
from gdkd_cache.objects.objects import open_objects
from gdkd_cache.objects.record import ObjectRecord
from gdkd_cache.schema import check_json, from_json, to_json
from gdkd_cache.store.claims import CLAIMS_NAME
from gdkd_cache.store.differences import differences_between
from gdkd_cache.store.facts import NO_CARD, UNFITTED, CodecFacts, Fidelity
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
    canonical_json,
    objects_from_json,
    parse_json,
)


class CacheWriter:
    """One build of one cache: new, resumed, or found complete. `begin` before anything is committed.

    Attributes:
        objects: of the place.
        manifest: the manifest when the place already holds this very cache complete, else None.
        fitted: the codec and its measured fidelity when an earlier run of this build has left them, else None.
    """

    def __init__(self, path: str | Path, identity: Identity, *, force: bool = False) -> None:
        """Look at the place, and make the folder when it does not exist.

        Args:
            path: the cache folder, or the URL of an object store.
            identity: what is built; its codec is `UNFITTED` where the rest decides it.
            force: remove another cache, another unfinished build or a damaged one in this place first.

        Raises:
            MismatchError: the place holds another cache or build, and `force` is off; it says what differs.
            CacheError: the place is not empty and holds no cache, where `force` does not help; or a damaged one.
            OSError, StoreError: the place cannot be written.
        """
        self.objects = open_objects(path)
        self._identity = identity
        self._verified: dict[tuple[int, int], dict[str, ObjectRecord]] = {}
        self.look(force=force)
        self.objects.prepare()

    def look(self, *, force: bool = False) -> None:
        """Find out what the place holds by now: sets `manifest` and `fitted`; errors as those of the constructor."""
        self._sizes = self.objects.sizes()
        self.manifest: Manifest | None = None
        self.fitted: tuple[Codec, Fidelity] | None = None
        try:
            found = self._found(force)
        except CacheError:
            if MANIFEST_NAME in self._sizes or not self.published():
                raise
            return self.look()  # another process has just finished this build, and build.json is gone
        # Without a codec of its own, a build takes what an earlier run of it has fitted; and the card of an unfinished
        # build is that of the run that finishes it.
        but = (
            *(("codec", "fidelity") if self._identity.codec == UNFITTED else ()),
            *(() if self.manifest else ("card",)),
        )
        if found is not None and (differing := differences_between(found.identity, self._identity, but=but)):
            if not force:
                raise MismatchError(
                    f"{self.objects.location} holds another build: {'; '.join(differing[:4])}; "
                    "use the same options to resume it, another place, or --force to replace it"
                )
            found = self._clear()
        self._begun = found is not None
        if found is not None:
            self.fitted = self._read_codec(found)
        return None

    def _clear(self) -> None:
        self.objects.delete(MANIFEST_NAME)  # first, so that nothing half-removed looks whole
        for child in sorted({name.split("/")[0] for name in self._sizes} - {MANIFEST_NAME, BUILD_NAME}):
            self.objects.delete(child)
        self.objects.delete(BUILD_NAME)
        self._sizes = {}
        self.manifest = None

    def _read_codec(self, found: Manifest) -> tuple[Codec, Fidelity] | None:
        identity = found.identity
        layout = tables_layout(found)
        if layout is None:
            return codec_from_json(to_json(identity.codec)), identity.fidelity
        try:
            objects = {name: self.objects.read(name, found.objects[name].size) for name in layout.object_names()}
            for name, data in objects.items():
                found.objects[name].check(name, ObjectRecord.of(data))
        except CacheError:
            return None  # killed between build.json and the tables, or damaged since: calibration gives them again
        return codec_from_json(to_json(identity.codec), layout.decode(objects)), identity.fidelity

    def begin(self, codec: Codec, fidelity: Fidelity) -> None:
        """Write the identity, and the codec's tables, before any shard."""
        facts = from_json(CodecFacts, codec.to_json())
        self._identity = dataclasses.replace(self._identity, codec=facts, fidelity=fidelity)
        self._codec = codec
        self._layouts = view_layouts(self._identity, codec)
        layout = row_layouts(self._identity).get(TABLES)
        self._tables = {} if layout is None else layout.encode(codec.tables_bytes())
        # Without its card, which may change while the build is unfinished.
        started = dataclasses.replace(self._identity, card=NO_CARD)
        begun = Manifest(started, {name: ObjectRecord.of(data) for name, data in self._tables.items()})
        self._build = begun.digest
        if self._begun:
            self.objects.write(BUILD_NAME, begun.to_bytes())
        elif not self.objects.create(BUILD_NAME, begun.to_bytes()):
            raise MismatchError(
                f"{self.objects.location}: another build began here meanwhile; name another place for this one"
            )
        for name, data in self._tables.items():
            self.objects.write(name, data)

    def _found(self, force: bool) -> Manifest | None:
        """What the place holds, complete (then it is `manifest`) or not; None for a new, empty or cleared place."""
        for name in (MANIFEST_NAME, BUILD_NAME):
            if name in self._sizes:
                data = self.objects.read(name, MANIFEST_LIMIT)
                try:
                    found = Manifest.from_bytes(data, name)
                except CacheError as error:
                    # A damaged manifest of ours may go; a file of the same name may be of something precious.
                    if not force or b'"gdkd-cache/' not in data:
                        raise CacheError(f"{self.objects.location}: {error}; or build it again with --force") from None
                    return self._clear()
                self.manifest = found if name == MANIFEST_NAME else None
                return found
        if any(not name.startswith(f"{CLAIMS_NAME}/") for name in self._sizes):
            raise CacheError(f"{self.objects.location} is not empty and holds no cache; name another place")
        return None

    def shards(self) -> Iterator[tuple[int, int, range]]:
        """All units of work in order: (view, shard, range of rows)."""
        return shards_of(self._identity)

    def recorded(self) -> set[tuple[int, int]]:
        """Which (view, shard) have a ledger record, by their names alone."""
        standing = self.objects.sizes(LEDGER_NAME)
        return {(view, shard) for view, shard, _ in self.shards() if _ledger_name(view, shard) in standing}

    def wanted(self, view: int, shard: int) -> bool:
        """Whether a shard has no ledger record, and the cache is not complete, at this moment."""
        # In this order: records go once the manifest stands.
        return self.objects.size(_ledger_name(view, shard)) is None and not self.published()

    def published(self) -> bool:
        """Whether a manifest stands here at this moment; `look` reads it."""
        return self.objects.size(MANIFEST_NAME) is not None

    def committed(self, view: int, shard: int) -> bool:
        """Whether this run committed a shard, or another run of this very build did and every byte of it stands.

        A ledger record that is damaged, of another build or of another shard does not count: the shard is built again.
        """
        if (view, shard) not in self._verified:
            name = _ledger_name(view, shard)
            try:
                stored = parse_json(name, self.objects.read(name, MANIFEST_LIMIT))
                check_json(name, stored, {"build": str, "objects": {str: [object]}})
                records = objects_from_json(name, stored["objects"])
                if stored["build"] != self._build or [*records] != sorted(shard_objects(self._layouts, view, shard)):
                    return False
                for name, record in records.items():
                    record.check(name, self.objects.record(name, record.size))
            except CacheError:
                return False
            self._verified[view, shard] = records
        return True

    def commit(self, view: int, shard: int, columns: Mapping[str, np.ndarray]) -> None:
        """Write one shard's columns, each [row, ...], then its ledger record."""
        records: dict[str, ObjectRecord] = {}
        for name, data in encode_shard(self._layouts, view, shard, columns).items():
            self.objects.write(name, data)
            records[name] = ObjectRecord.of(data)
        objects = {name: [record.size, record.sha256] for name, record in records.items()}
        self.objects.write(_ledger_name(view, shard), canonical_json({"build": self._build, "objects": objects}))
        self._verified[view, shard] = records

    def committed_here(self, view: int, shard: int) -> bool:
        """Whether this run committed a shard, or has read all that another one committed."""
        return (view, shard) in self._verified

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
        objects: dict[str, ObjectRecord] = {}
        for view, shard, _ in self.shards():
            if not self.committed(view, shard):
                raise CacheError(f"{self.objects.location}: view {view}, shard {shard} is not committed; build again")
            objects |= self._verified[view, shard]
        shared = encode_metadata(self._identity, self._codec)
        shared |= encode_rows(self._identity, keys, labels, source_probes)
        if not self.published():  # what another build has published is left as it is
            for name, data in shared.items():
                self.objects.write(name, data)
        for name, data in (shared | self._tables).items():
            objects[name] = ObjectRecord.of(data)
        manifest = Manifest(self._identity, objects)
        check_objects(manifest, row_layouts(self._identity) | self._layouts)
        if not self.objects.create(MANIFEST_NAME, manifest.to_bytes()):
            raise MismatchError(
                f"{self.objects.location}: another build has published another cache here meanwhile; "
                "name another place, or --force to replace it"
            )
        return manifest

    def clean(self) -> None:
        """Remove what only an unfinished build needs, once the manifest stands."""
        for name in (LEDGER_NAME, BUILD_NAME, CLAIMS_NAME):
            self.objects.delete(name)
        self.objects.sweep()


def _ledger_name(view: int, shard: int) -> str:
    return f"{LEDGER_NAME}/{view}/{shard}.json"
