"""What a place holds for one identity: a complete cache, a build that has begun, or nothing; and how a build begins.

What another build has left there goes only when this one begins, with a codec in hand, alone in the place: first
`replaced.json` says what is to go, then `build.json` gives the place to this build, then the old manifest goes, then
all the rest. A build that is interrupted there goes on with it.
"""

import dataclasses
import hashlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gdkd_cache.codec.base import Codec
from gdkd_cache.codec.fidelity import Fidelity
from gdkd_cache.codec.stored import codec_from_json
from gdkd_cache.errors import CacheError, MismatchError
from gdkd_cache.objects.objects import open_writable
from gdkd_cache.objects.record import ObjectRecord
from gdkd_cache.schema import from_json, short, to_json
from gdkd_cache.store.belongings import belongings, encode_replaced, is_claim, leftovers, read_replaced
from gdkd_cache.store.claims import CLAIMS_NAME
from gdkd_cache.store.differences import differences_between
from gdkd_cache.store.facts import NO_CARD, UNFITTED, UNMEASURED, CodecFacts, Examination
from gdkd_cache.store.generation import Generation
from gdkd_cache.store.layout import TABLES, num_objects, row_layouts, tables_layout
from gdkd_cache.store.manifest import (
    BUILD_NAME,
    MANIFEST_LIMIT,
    MANIFEST_NAME,
    MOST_OBJECTS,
    REPLACED_NAME,
    Identity,
    Manifest,
    canonical_json,
)
from gdkd_cache.store.writer import CacheWriter


@dataclass(frozen=True)
class Complete:
    """The very cache stands there, finished: its manifest."""

    manifest: Manifest


@dataclass(frozen=True)
class Begun:
    """What a build begins with: its codec, what that was measured to lose, and how right the teacher was found."""

    codec: Codec
    fidelity: Fidelity
    examination: Examination | None = None


@dataclass(frozen=True)
class Empty:
    """The place exists and holds nothing to go on with."""


Found = Complete | Begun | Empty


@dataclass(frozen=True)
class _Other:
    """Another build, finished or not, or a damaged one: what it is known by, and in what it differs."""

    which: str
    differing: str


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
        self._replaces: str | None = None  # what the first look found with --force: nothing that came later

    @cached_property
    def build(self) -> str:
        """What all processes of this build call it, and no other build is called."""
        identity = dataclasses.replace(self._identity, card=NO_CARD)
        if identity.codec == UNFITTED:
            identity = dataclasses.replace(identity, fidelity=UNMEASURED, examination=None)
        with _writable():
            return hashlib.sha256(canonical_json(to_json(identity))).hexdigest()[:16]

    def look(self, *, force: bool = False) -> Found:
        """Find out what the place holds by now, and make the folder when it does not exist.

        Args:
            force: another cache, another unfinished build or a damaged one in this place may be replaced; it stays
                as it is until this build begins.

        Raises:
            MismatchError: the place holds another cache or build, and `force` is off, or that one came after the first
                look; it says what differs.
            CacheError: the place holds something else, if only beside what `force` would replace: it is named, and
                nothing is removed; or a damaged cache.
            OSError, StoreError: the place cannot be written.
        """
        names = self.objects.sizes()
        found = self._find(names, force=force)
        if isinstance(found, _Other) and force and self._replaces is None:
            belongings(self.objects, names)
            self._replaces = found.which
        self.objects.prepare()
        if not isinstance(found, _Other):
            return found
        if found.which != self._replaces:
            raise MismatchError(
                f"{self.objects.location} holds another build: {found.differing}; use the same options to resume it, "
                "another place, or --force to replace it"
            )
        return Empty()

    def _find(self, names: Collection[str], *, force: bool = False) -> Found | _Other:
        name = next((name for name in (MANIFEST_NAME, BUILD_NAME) if name in names), None)
        if name is None:
            if others := sorted(name for name in names if not is_claim(name)):
                raise CacheError(
                    f"{self.objects.location} is not empty and holds no cache, but {short(others[0])}; "
                    "name another place"
                )
            return Empty()
        try:
            data = self.objects.read(name, MANIFEST_LIMIT)
        except CacheError:
            if name == MANIFEST_NAME or self.objects.size(MANIFEST_NAME) is None:
                raise
            return self._find([MANIFEST_NAME])  # another process has just finished this build, and build.json is gone
        try:
            found = Manifest.from_bytes(data, name)
        except CacheError as error:
            # A damaged manifest of ours may go; a file of the same name may be of something precious.
            if not (force or self._replaces) or b'"gdkd-cache/' not in data:
                raise CacheError(f"{self.objects.location}: {error}; or build it again with --force") from None
            return _Other(hashlib.sha256(data).hexdigest(), str(error))
        complete = name == MANIFEST_NAME
        # Without a codec of its own, a build takes what an earlier run of it has fitted; and the card of an unfinished
        # build is that of the run that finishes it.
        open_yet = ("codec", "fidelity", "examination") if self._identity.codec == UNFITTED else ()
        but = (*open_yet, *(() if complete else ("card",)))
        if differing := differences_between(found.identity, self._identity, but=but):
            return _Other(found.begun.digest, "; ".join(differing[:4]))
        return Complete(found) if complete else self._read_codec(found)

    def _read_codec(self, found: Manifest) -> Begun | Empty:
        identity = found.identity
        layout = tables_layout(found)
        if layout is None:
            return Begun(codec_from_json(to_json(identity.codec)), identity.fidelity, identity.examination)
        try:
            objects = {name: self.objects.read(name, found.objects[name].size) for name in layout.object_names()}
            for name, data in objects.items():
                found.objects[name].check(name, ObjectRecord.of(data))
        except CacheError:
            return Empty()  # killed between build.json and the tables, or damaged since: calibration gives them again
        codec = codec_from_json(to_json(identity.codec), layout.decode(objects))
        return Begun(codec, identity.fidelity, identity.examination)

    def stated(self) -> Identity | None:
        """The identity of the cache or the unfinished build that stands there; None where none can be read."""
        for name in (BUILD_NAME, MANIFEST_NAME):  # the second stands when the first goes
            try:
                return Manifest.from_bytes(self.objects.read(name, MANIFEST_LIMIT), name).identity
            except CacheError:
                continue
        return None

    def begin(self, begun: Begun) -> CacheWriter:
        """Make the place this build's, and write the codec's tables, before any shard; what it gives commits those.

        Raises:
            MismatchError: another build has begun here since the first look.
            CacheError: what is to be replaced is not alone there any more; or the identity holds what no manifest may,
                such as a number that is not finite, or is of too many objects.
            OSError, StoreError: the place cannot be written.
        """
        codec, facts = begun.codec, from_json(CodecFacts, begun.codec.to_json())
        identity = dataclasses.replace(
            self._identity, codec=facts, fidelity=begun.fidelity, examination=begun.examination
        )
        if (number := num_objects(identity, codec)) > MOST_OBJECTS:
            raise CacheError(
                f"{identity.num_rows:,} rows in {identity.num_views} views are {number:,} objects, and a manifest "
                f"lists {MOST_OBJECTS:,}; build fewer views, or caches of parts of the rows"
            )
        layout = row_layouts(identity).get(TABLES)
        tables = {} if layout is None else layout.encode(codec.tables_bytes())
        whole = Manifest(identity, {name: ObjectRecord.of(data) for name, data in tables.items()})
        _check_readable(whole)
        generation = Generation.of_build(self.objects, whole.begun)
        with self.objects.alone():
            self._take(whole.begun)
        for name, data in tables.items():
            # Others may be about to tidy up what they finished: nothing is written twice.
            if self.objects.size(name) != len(data) or self.objects.read(name, len(data)) != data:
                self.objects.write(name, data, allowed=generation.check)
        return CacheWriter(self.objects, identity, codec, whole.begun, generation)

    def _take(self, begun: Manifest) -> None:
        """Make the place this build's, and remove what it replaces."""
        seen = self._stamps()
        names = self.objects.sizes()
        found = self._find(names)
        if isinstance(found, Complete):
            return
        if isinstance(found, _Other) and found.which != self._replaces:
            raise MismatchError(
                f"{self.objects.location}: another build began here meanwhile: {found.differing}; name another place"
            )
        doomed = belongings(self.objects, names) if isinstance(found, _Other) else {*read_replaced(self.objects)}
        doomed -= {BUILD_NAME, REPLACED_NAME}
        doomed -= {name for name in doomed if name.startswith(f"{CLAIMS_NAME}/{self.build}/")}

        def unchanged() -> None:
            if self._stamps() != seen:
                raise MismatchError(f"{self.objects.location}: another build began here meanwhile; name another place")

        if doomed and isinstance(found, _Other):
            self.objects.write(REPLACED_NAME, encode_replaced(doomed), allowed=unchanged)
        data = begun.to_bytes()
        if BUILD_NAME not in names:
            if not self.objects.create(BUILD_NAME, data, allowed=unchanged):
                unchanged()
        elif self.objects.read(BUILD_NAME, MANIFEST_LIMIT) != data:
            self.objects.write(BUILD_NAME, data, allowed=unchanged)
        self.objects.delete(doomed & {MANIFEST_NAME})  # first, so that nothing half-removed looks whole
        self.objects.delete(doomed)
        self.objects.delete([REPLACED_NAME] if REPLACED_NAME in names or doomed else [])

    def _stamps(self) -> list[str | None]:
        return [self.objects.stamp(name) for name in (MANIFEST_NAME, BUILD_NAME)]

    def clean(self, complete: Complete) -> None:
        """Remove what only unfinished work needs, once this build's manifest stands."""
        generation = Generation.of_build(self.objects, complete.manifest)
        generation.tidy(lambda: leftovers(self.objects.sizes(), self.build))


def _check_readable(manifest: Manifest) -> None:
    """Refuse, before a shard is computed for it, what no reader would accept once it is published."""
    with _writable():
        Manifest.from_bytes(manifest.to_bytes(), "the manifest of this build")


@contextmanager
def _writable() -> Iterator[None]:
    """Tell of what JSON cannot hold: a number that is not finite, half of a character."""
    try:
        yield
    except ValueError as error:
        raise CacheError(f"the manifest of this build cannot be written: {error}") from None
