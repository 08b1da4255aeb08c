"""What a place holds for one identity: a complete cache, a build that has begun, or nothing; and how a build begins."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gdkd_cache.codec.base import Codec
from gdkd_cache.codec.fidelity import Fidelity
from gdkd_cache.codec.stored import codec_from_json
from gdkd_cache.errors import CacheError, MismatchError
from gdkd_cache.objects.objects import open_writable
from gdkd_cache.objects.record import ObjectRecord
from gdkd_cache.schema import from_json, to_json
from gdkd_cache.store.claims import CLAIMS_NAME
from gdkd_cache.store.differences import differences_between
from gdkd_cache.store.facts import NO_CARD, UNFITTED, CodecFacts
from gdkd_cache.store.layout import TABLES, row_layouts, tables_layout
from gdkd_cache.store.manifest import BUILD_NAME, LEDGER_NAME, MANIFEST_LIMIT, MANIFEST_NAME, Identity, Manifest
from gdkd_cache.store.writer import CacheWriter


@dataclass(frozen=True)
class Complete:
    """The very cache stands there, finished: its manifest."""

    manifest: Manifest


@dataclass(frozen=True)
class Begun:
    """The very build has begun: its codec, and what that was measured to lose."""

    codec: Codec
    fidelity: Fidelity


@dataclass(frozen=True)
class Empty:
    """The place exists and holds nothing to go on with."""


Found = Complete | Begun | Empty


class Place:
    """A place for one cache.

    Attributes:
        objects: of the place.
    """

    def __init__(self, path: str | Path, identity: Identity) -> None:
        """Touch nothing yet.

        Args:
            path: the cache folder, or the URL of an object store.
            identity: what is built; its codec is `UNFITTED` where the rest decides them.

        Raises:
            UsageError: no place that can be written.
            StoreError: the environment's settings for the object store are wrong.
        """
        self.objects = open_writable(path)
        self._identity = identity
        self._begun = False
        self._standing: Manifest | None = None  # build.json, with all that it lists

    def look(self, *, force: bool = False) -> Found:
        """Find out what the place holds by now, and make the folder when it does not exist.

        Args:
            force: remove another cache, another unfinished build or a damaged one in this place first.

        Raises:
            MismatchError: the place holds another cache or build, and `force` is off; it says what differs.
            CacheError: the place is not empty and holds no cache, where `force` does not help; or a damaged one.
            OSError, StoreError: the place cannot be written.
        """
        names = self.objects.sizes()
        try:
            found = self._manifest(names, force)
        except CacheError:
            if MANIFEST_NAME in names or self.objects.size(MANIFEST_NAME) is None:
                raise
            return self.look(force=force)  # another process has just finished this build, and build.json is gone
        complete = MANIFEST_NAME in names
        # Without a codec of its own, a build takes what an earlier run of it has fitted; and the card of an unfinished
        # build is that of the run that finishes it.
        but = (*(("codec", "fidelity") if self._identity.codec == UNFITTED else ()), *(() if complete else ("card",)))
        if found is not None and (differing := differences_between(found.identity, self._identity, but=but)):
            if not force:
                raise MismatchError(
                    f"{self.objects.location} holds another build: {'; '.join(differing[:4])}; "
                    "use the same options to resume it, another place, or --force to replace it"
                )
            found = self._clear(names)
        self._begun = found is not None
        self.objects.prepare()
        if found is None:
            return Empty()
        if complete:
            return Complete(found)
        begun = self._read_codec(found)
        self._standing = found if isinstance(begun, Begun) else None
        return begun

    def _manifest(self, names: Iterable[str], force: bool) -> Manifest | None:
        """What the place holds, complete or not; None for a new, empty or cleared place."""
        for name in (MANIFEST_NAME, BUILD_NAME):
            if name in names:
                data = self.objects.read(name, MANIFEST_LIMIT)
                try:
                    return Manifest.from_bytes(data, name)
                except CacheError as error:
                    # A damaged manifest of ours may go; a file of the same name may be of something precious.
                    if not force or b'"gdkd-cache/' not in data:
                        raise CacheError(f"{self.objects.location}: {error}; or build it again with --force") from None
                    return self._clear(names)
        if any(not name.startswith(f"{CLAIMS_NAME}/") for name in names):
            raise CacheError(f"{self.objects.location} is not empty and holds no cache; name another place")
        return None

    def _clear(self, names: Iterable[str]) -> None:
        self.objects.delete(MANIFEST_NAME)  # first, so that nothing half-removed looks whole
        for child in sorted({name.split("/")[0] for name in names} - {MANIFEST_NAME, BUILD_NAME}):
            self.objects.delete(child)
        self.objects.delete(BUILD_NAME)

    def _read_codec(self, found: Manifest) -> Begun | Empty:
        identity = found.identity
        layout = tables_layout(found)
        if layout is None:
            return Begun(codec_from_json(to_json(identity.codec)), identity.fidelity)
        try:
            objects = {name: self.objects.read(name, found.objects[name].size) for name in layout.object_names()}
            for name, data in objects.items():
                found.objects[name].check(name, ObjectRecord.of(data))
        except CacheError:
            return Empty()  # killed between build.json and the tables, or damaged since: calibration gives them again
        return Begun(codec_from_json(to_json(identity.codec), layout.decode(objects)), identity.fidelity)

    def begin(self, codec: Codec, fidelity: Fidelity) -> CacheWriter:
        """Write the identity, and the codec's tables, before any shard; what it gives commits those.

        Raises:
            MismatchError: where the last look found nothing, another build has begun meanwhile.
            CacheError: the identity holds what no manifest may, such as a number that is not finite.
            OSError, StoreError: the place cannot be written.
        """
        identity = dataclasses.replace(self._identity, codec=from_json(CodecFacts, codec.to_json()), fidelity=fidelity)
        layout = row_layouts(identity).get(TABLES)
        tables = {} if layout is None else layout.encode(codec.tables_bytes())
        records = {name: ObjectRecord.of(data) for name, data in tables.items()}
        _check_readable(Manifest(identity, records))
        # Without its card, which may change while the build is unfinished.
        begun = Manifest(dataclasses.replace(identity, card=NO_CARD), records)
        if begun == self._standing:  # others may be about to tidy it up: nothing is written twice
            return CacheWriter(self.objects, identity, codec, begun)
        if self._begun:
            self.objects.write(BUILD_NAME, begun.to_bytes())
        elif not self.objects.create(BUILD_NAME, begun.to_bytes()):
            raise MismatchError(
                f"{self.objects.location}: another build began here meanwhile; name another place for this one"
            )
        for name, data in tables.items():
            self.objects.write(name, data)
        return CacheWriter(self.objects, identity, codec, begun)

    def clean(self) -> None:
        """Remove what only an unfinished build needs, once the manifest stands."""
        for name in (LEDGER_NAME, BUILD_NAME, CLAIMS_NAME):
            self.objects.delete(name)
        self.objects.sweep()


def _check_readable(manifest: Manifest) -> None:
    """Refuse, before a shard is computed for it, what no reader would accept once it is published."""
    try:
        Manifest.from_bytes(manifest.to_bytes(), "the manifest of this build")
    except ValueError as error:  # what JSON cannot hold: a number that is not finite, half of a character
        raise CacheError(f"the manifest of this build cannot be written: {error}") from None
