"""Copy a cache between folders and object stores: every byte checked on the way, the manifest last."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gdkd_cache.cache import open_cache
from gdkd_cache.errors import CacheError, MismatchError, UsageError
from gdkd_cache.pipeline.progress import progress
from gdkd_cache.store import CacheReader, Manifest, view_layouts
from gdkd_cache.store.card import readme
from gdkd_cache.store.manifest import BUILD_NAME, MANIFEST_LIMIT, MANIFEST_NAME, ObjectRecord, canonical_json
from gdkd_cache.store.names import README_NAME
from gdkd_cache.store.objects import Objects, open_objects

_OBJECTS_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class CopyResult:
    """What a copy did.

    Attributes:
        source_digest: of the cache that was copied.
        manifest: of the copy; with fewer views it is a cache of its own, with its own digest.
        num_sent, num_bytes: objects that this run wrote, and their bytes; those that stood already are not sent again.
    """

    source_digest: str
    manifest: Manifest
    num_sent: int
    num_bytes: int


def copy(
    source: str | Path, destination: str | Path, *, num_views: int | None = None, digest: str | None = None
) -> CopyResult:
    """Copy a cache, or go on with a copy that was interrupted.

    Args:
        source: the cache, a folder or a URL.
        destination: a folder or URL that is empty, or holds this very copy, complete or not; what is damaged in it
            is written again.
        num_views: copy only the first views; None copies all.
        digest: refuse a source of another digest.

    Raises:
        UsageError: more views than there are, or a read-only destination.
        CacheError: the source is no cache or is damaged (it names the object), or the destination holds something else.
        MismatchError: another digest, or another cache, build or copy in the destination.
        OSError, StoreError: a place cannot be read or written; the same copy resumes.
    """
    reader = open_cache(source, digest=digest).reader
    manifest, own = _first_views(reader, num_views)
    objects = open_objects(destination)
    standing = objects.sizes()
    complete = MANIFEST_NAME in standing
    _claim(objects, manifest, standing)

    def send(name: str) -> int:
        """Bytes that it took to make the object stand."""
        record = manifest.objects[name]

        def data() -> bytes:
            return own[name] if name in own else reader.read(name)

        if standing.get(name) == record.size and objects.holds(name, record, data):
            return 0
        objects.write(name, data())
        return record.size

    names = sorted(manifest.objects)
    num_sent = num_bytes = 0
    with (
        progress("copy", sum(record.size for record in manifest.objects.values()), "bytes") as advance,
        ThreadPoolExecutor(_OBJECTS_AT_ONCE, thread_name_prefix="copy-objects") as executor,
    ):
        for name, sent in zip(names, executor.map(send, names), strict=True):
            advance(manifest.objects[name].size)
            num_sent, num_bytes = num_sent + bool(sent), num_bytes + sent
    if not complete and not objects.create(MANIFEST_NAME, manifest.to_bytes()):
        raise MismatchError(f"{objects.location}: another cache was published there meanwhile; name another place")
    objects.delete(BUILD_NAME)
    return CopyResult(source_digest=reader.manifest.digest, manifest=manifest, num_sent=num_sent, num_bytes=num_bytes)


def _first_views(reader: CacheReader, num_views: int | None) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest of the first views, and the objects that it does not share with the whole: shapes and README.md."""
    whole = reader.manifest
    if num_views is None or num_views == whole.identity.num_views:
        return whole, {}
    if not 0 < num_views < whole.identity.num_views:
        raise UsageError(f"{reader.path} has views 0 to {whole.identity.num_views - 1}; copy a part of those")
    identity = dataclasses.replace(whole.identity, num_views=num_views)
    dropped = range(num_views, whole.identity.num_views)
    left_out, own = set[str](), {README_NAME: readme(identity)}
    for layout in view_layouts(identity, reader.codec).values():
        left_out.update(name for view in dropped for name in layout.object_names(view))
        own |= layout.metadata()
    objects = {name: record for name, record in whole.objects.items() if name not in left_out}
    return Manifest(identity, objects | {name: ObjectRecord.of(data) for name, data in own.items()}), own


def _claim(objects: Objects, manifest: Manifest, standing: dict[str, int]) -> None:
    """Make sure that the destination is this copy's alone; until the manifest stands, it reads as unfinished."""
    if MANIFEST_NAME in standing:
        found = Manifest.from_bytes(objects.read(MANIFEST_NAME, MANIFEST_LIMIT)).digest
        if found != manifest.digest:
            raise MismatchError(
                f"{objects.location} holds another cache, {found}, not {manifest.digest}; name another place"
            )
    elif standing and BUILD_NAME not in standing:
        raise CacheError(f"{objects.location} is not empty and holds no cache; name another place")
    objects.prepare()
    claim = canonical_json(manifest.identity.to_json() | {"copy_of": manifest.digest})
    if MANIFEST_NAME not in standing and not objects.create(BUILD_NAME, claim):
        raise MismatchError(f"{objects.location} holds another unfinished build or copy; name another place")
