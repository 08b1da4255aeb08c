"""Build a cache so that a crash at any instant loses at most the shard in flight.

Protocol: `build.json` first, a manifest of the identity and the codec's tables alone (`place.py`); then for each (view,
shard) its objects, each durable and read back, and only then its ledger record, which names the build and holds each
object's size and checksum; the manifest last. With a shard of the first view goes that of the images' checks. Records
and `build.json` go once the manifest stands. What an earlier run left is used only if every byte of it is what was
recorded. The place belongs to one build at a time (`generation.py`): each write asks whether it still is this one's;
processes of the same build share its shards by claims (`claims.py`).
"""

from collections.abc import Iterator, Mapping

import numpy as np

from gdkd_cache.codec.base import Codec
from gdkd_cache.errors import CacheError, MismatchError
from gdkd_cache.objects.objects import WritableObjects
from gdkd_cache.objects.record import ObjectRecord
from gdkd_cache.schema import check_json
from gdkd_cache.store.arrays import ArrayLayout
from gdkd_cache.store.generation import Generation
from gdkd_cache.store.layout import (
    check_layouts,
    check_objects,
    encode_metadata,
    encode_rows,
    encode_shard,
    shard_objects,
    shards_of,
    view_layouts,
)
from gdkd_cache.store.manifest import (
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
    """Commits the shards of a build that has begun, and publishes its cache; `Place.begin` makes it.

    Attributes:
        codec: what its columns are encoded with.
    """

    def __init__(
        self, objects: WritableObjects, identity: Identity, codec: Codec, begun: Manifest, generation: Generation
    ) -> None:
        """Write nothing yet.

        Args:
            objects: of the place.
            identity: what is built, codec and fidelity included.
            codec: that of the identity.
            begun: what `build.json` holds: the identity without its card, and the records of the codec's tables.
            generation: of this build.
        """
        self.codec = codec
        self._objects, self._identity, self._tables, self._build = objects, identity, begun.objects, begun.digest
        self._layouts, self._generation = view_layouts(identity, codec), generation
        self._verified: dict[tuple[int, int], dict[str, ObjectRecord]] = {}

    @property
    def first_view(self) -> int:
        """The number of the first view."""
        return self._identity.view_numbers.start

    def _committed_with(self, view: int) -> dict[str, ArrayLayout]:
        """The arrays of which a view's shards bring a part."""
        is_first = view == self.first_view
        return self._layouts | (check_layouts(self._identity) if is_first else {})

    def shards(self) -> Iterator[tuple[int, int, range]]:
        """All units of work in order: (view, shard, range of rows)."""
        return shards_of(self._identity)

    def recorded(self) -> set[tuple[int, int]]:
        """Which (view, shard) have a ledger record, by their names alone."""
        standing = self._objects.sizes(LEDGER_NAME)
        return {(view, shard) for view, shard, _ in self.shards() if _ledger_name(view, shard) in standing}

    def wanted(self, view: int, shard: int) -> bool:
        """Whether a shard has no ledger record, and the cache is not complete, at this moment."""
        # In this order: records go once the manifest stands.
        return self._objects.size(_ledger_name(view, shard)) is None and not self.published()

    def published(self) -> bool:
        """Whether this build's manifest stands here at this moment.

        Raises:
            MismatchError: the place was given to another build.
        """
        return self._generation.published()

    def committed(self, view: int, shard: int) -> bool:
        """Whether this run committed a shard, or another run of this very build did and every byte of it stands.

        A ledger record that is damaged, of another build or of another shard does not count: the shard is built again.
        """
        if (view, shard) not in self._verified:
            name = _ledger_name(view, shard)
            try:
                stored = parse_json(name, self._objects.read(name, MANIFEST_LIMIT))
                check_json(name, stored, {"build": str, "objects": {str: [object]}})
                records = objects_from_json(name, stored["objects"])
                wanted = sorted(shard_objects(self._committed_with(view), view, shard))
                if stored["build"] != self._build or [*records] != wanted:
                    return False
                for name, record in records.items():
                    record.check(name, self._objects.record(name, record.size))
            except CacheError:
                return False
            self._verified[view, shard] = records
        return True

    def commit(self, view: int, shard: int, columns: Mapping[str, np.ndarray]) -> None:
        """Write one shard's columns, each [row, ...], then its ledger record.

        Those of the first view have the `source_check` and `image_size` of its rows, if the cache is to have them.

        Raises:
            MismatchError: the place was given to another build.
        """
        records: dict[str, ObjectRecord] = {}
        for name, data in encode_shard(self._committed_with(view), view, shard, columns).items():
            self._write(name, data)
            records[name] = ObjectRecord.of(data)
        objects = {name: [record.size, record.sha256] for name, record in records.items()}
        self._write(_ledger_name(view, shard), canonical_json({"build": self._build, "objects": objects}))
        self._verified[view, shard] = records

    def columns(self, view: int, shard: int) -> dict[str, np.ndarray]:
        """The codec's columns of a committed shard, read back: each [row, ...].

        Raises:
            CacheError: not every byte of it stands.
        """
        if not self.committed(view, shard):
            raise CacheError(
                f"{self._objects.location}: view {view}, shard {shard}, which others are predicted from, is damaged "
                "since it was committed; run the build again"
            )
        arrays = {}
        for name in self.codec.columns():
            layout = self._layouts[name]
            where = layout.object_name(shard, view)
            record = self._verified[view, shard][where]
            data = self._objects.read(where, record.size)
            record.check(where, ObjectRecord.of(data))
            arrays[name] = layout.decode({where: data}, view, layout.rows_of(shard))
        return arrays

    def forget(self, view: int, shard: int) -> None:
        """Remove a shard's ledger record, for it to be built again."""
        self._objects.delete([_ledger_name(view, shard)], allowed=self._generation.check)

    def _write(self, name: str, data: bytes) -> None:
        self._objects.write(name, data, allowed=self._generation.check)

    def finish(
        self,
        keys: list[str],
        labels: np.ndarray,
        source_probes: np.ndarray | None = None,
        references: Mapping[str, bytes] | None = None,
    ) -> Manifest:
        """Write what all views share, then publish the manifest.

        Args:
            keys: key strings in row order.
            labels: class ids [row].
            source_probes: uint8 [row, 20], when views are replayed.
            references: the objects of views before those of the cache that predict them.

        Raises:
            CacheError: a shard is not committed.
            MismatchError: the place was given to another build, or another process of this one has published another
                outcome here meanwhile.
        """
        objects = dict(self._tables)
        for view, shard, _ in self.shards():
            if not self.committed(view, shard):
                raise CacheError(f"{self._objects.location}: view {view}, shard {shard} is not committed; build again")
            objects |= self._verified[view, shard]
        shared = encode_metadata(self._identity, self.codec)
        shared |= encode_rows(self._identity, keys, labels, source_probes) | dict(references or {})
        if not self.published():  # what another process of this build has published is left as it is
            for name, data in shared.items():
                self._write(name, data)
        objects |= {name: ObjectRecord.of(data) for name, data in shared.items()}
        manifest = Manifest(self._identity, objects)
        check_objects(manifest, self.codec)
        data = manifest.to_bytes()
        if not self._objects.create(MANIFEST_NAME, data, allowed=self._generation.check):
            if self.published():
                raise MismatchError(
                    f"{self._objects.location}: another process has published another outcome of this build here "
                    "meanwhile; name another place, or --force to replace it"
                )
            self._write(MANIFEST_NAME, data)  # over one that came late, of a build that the place was taken from
        return manifest


def _ledger_name(view: int, shard: int) -> str:
    return f"{LEDGER_NAME}/{view}/{shard}.json"
