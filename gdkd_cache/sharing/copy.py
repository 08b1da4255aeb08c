"""Copy a cache between folders and object stores: every byte checked on the way, the manifest last."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gdkd_cache.cache.cache import open_cache
from gdkd_cache.errors import CacheError, MismatchError, UsageError
from gdkd_cache.objects.objects import WritableObjects, open_repository, open_writable
from gdkd_cache.progress import progress
from gdkd_cache.sharing.commit import commit
from gdkd_cache.sharing.parts import Assembly, assemble, whole_cache
from gdkd_cache.store.generation import Generation
from gdkd_cache.store.manifest import BUILD_NAME, MANIFEST_LIMIT, MANIFEST_NAME, Manifest

_OBJECTS_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class CopyResult:
    """What a copy did.

    Attributes:
        source_digests: of the caches that were copied.
        manifest: of the copy; with other views than a source it is a cache of its own, with its own digest.
        location: of the copy, as messages tell it; in a repository, with the commit.
        num_sent, num_bytes: objects that this run wrote, and their bytes; those that stood already are not sent again.
    """

    source_digests: tuple[str, ...]
    manifest: Manifest
    location: str
    num_sent: int
    num_bytes: int


def copy(
    source: str | Path,
    destination: str | Path,
    *,
    views: range | None = None,
    digest: str | None = None,
    create: bool = False,
    replace: bool = False,
) -> CopyResult:
    """Copy a cache, or go on with a copy that was interrupted.

    Args:
        source: the cache, a folder or a URL.
        destination: a folder or URL that is empty, or holds this very copy, complete or not; what is damaged in it
            is written again. In a dataset repository (`hf://`) it becomes one commit, several where it is very large,
            with the manifest in the last.
        views: copy only these, which keep their numbers; None copies all.
        digest: refuse a source of another digest.
        create: make the repository of the destination, where there is none; only its owner sees it.
        replace: let another cache go that stands in a repository, whose commits keep it.

    Raises:
        UsageError: `create` or `replace` for another place than a repository, views that there are not, views of packed
            logits that do not begin with the first, as they have no numbers, or a read-only destination.
        CacheError: the source is no cache or is damaged (it names the object), or the destination holds something else.
        MismatchError: another digest, or another cache, build or copy in the destination.
        OSError, StoreError: a place cannot be read or written; the same copy resumes.
    """
    if (create or replace) and open_repository(destination) is None:
        raise UsageError("create and replace (--create, --replace) are for hf:// alone; other places keep no commits")
    cache = open_cache(source, digest=digest)
    identity = cache.manifest.identity
    held = identity.view_numbers
    if views is None or views == held:
        return publish(whole_cache(cache), destination, [cache.manifest.digest], create=create, replace=replace)
    if not (views and held[0] <= views[0] and views[-1] <= held[-1]):
        raise UsageError(f"{cache.path} has views {held[0]} to {held[-1]}; copy a part of those")
    if identity.views is None and views[0] > 0:
        raise UsageError(f"{cache.path} was packed, and its views have no numbers; copy the first ones, from 0")
    part = assemble([cache], views, identity.card)
    return publish(part, destination, [cache.manifest.digest], create=create, replace=replace)


def publish(
    assembly: Assembly,
    destination: str | Path,
    source_digests: Sequence[str],
    *,
    create: bool = False,
    replace: bool = False,
) -> CopyResult:
    """Write an assembled cache to a place, or go on with it; options and errors as those of `copy`."""
    manifest = assembly.manifest
    if (repository := open_repository(destination)) is not None:
        location, num_sent, num_bytes = commit(assembly, repository, create=create, replace=replace)
        return CopyResult(
            source_digests=tuple(source_digests),
            manifest=manifest,
            location=location,
            num_sent=num_sent,
            num_bytes=num_bytes,
        )
    objects = open_writable(destination)
    standing = objects.sizes()
    complete = MANIFEST_NAME in standing
    _claim(objects, manifest, standing)
    generation = Generation.of_cache(objects, manifest)

    def send(name: str) -> int:
        """Bytes that it took to make the object stand."""
        record = manifest.objects[name]
        if standing.get(name) == record.size and objects.holds(name, record, lambda: assembly.read(name)):
            return 0
        objects.write(name, assembly.read(name), allowed=generation.check)
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
    if not complete and not objects.create(MANIFEST_NAME, manifest.to_bytes(), allowed=generation.check):
        raise MismatchError(f"{objects.location}: another cache was published there meanwhile; name another place")
    generation.tidy(list)
    return CopyResult(
        source_digests=tuple(source_digests),
        manifest=manifest,
        location=objects.location,
        num_sent=num_sent,
        num_bytes=num_bytes,
    )


def _claim(objects: WritableObjects, manifest: Manifest, standing: dict[str, int]) -> None:
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
    if MANIFEST_NAME not in standing and not objects.create(BUILD_NAME, manifest.to_bytes()):
        raise MismatchError(f"{objects.location} holds another unfinished build or copy; name another place")
