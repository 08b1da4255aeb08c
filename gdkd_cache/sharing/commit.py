"""Publish a cache in a repository: every byte checked on the way, the manifest in the last commit, or the only one."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from gdkd_cache.errors import CacheError, MismatchError, StoreError
from gdkd_cache.objects.names import README_NAME
from gdkd_cache.objects.objects import Known, Listed, Repository
from gdkd_cache.objects.record import ObjectRecord
from gdkd_cache.progress import progress
from gdkd_cache.schema import short
from gdkd_cache.sharing.parts import Assembly
from gdkd_cache.store.manifest import BUILD_NAME, MANIFEST_LIMIT, MANIFEST_NAME, Manifest

_OBJECTS_AT_ONCE = 8
_MOST_TOGETHER = 128
_BYTES_TOGETHER = 64 * 2**20


def commit(assembly: Assembly, repository: Repository, *, create: bool, replace: bool) -> tuple[str, int, int]:
    """Write an assembled cache to a repository, or go on with it; raises what `copy` raises.

    Args:
        assembly: the cache.
        repository: what is written to.
        create: make the repository where there is none.
        replace: let another cache go that stands there; the commits before keep it.

    Returns:
        Where it stands now, commit and all; how many objects went into commits of this run, and their bytes.
    """
    manifest, standing = assembly.manifest, _opened(repository, create)
    files = standing.files()
    stale = _others(standing, manifest, files, replace)
    is_whole, is_begun = (not stale and name in files for name in (MANIFEST_NAME, BUILD_NAME))

    def unsent(name: str) -> bytes | None:
        """An object's bytes; None where it stands already."""
        record, file, read = manifest.objects[name], files.get(name), partial(assembly.read, name)
        return None if file is not None and file.holds(record, read) else read()

    num_sent = num_bytes = 0
    with (
        progress("copy", sum(record.size for record in manifest.objects.values()), "bytes") as advance,
        ThreadPoolExecutor(_OBJECTS_AT_ONCE, thread_name_prefix="copy-objects") as executor,
    ):
        for names in _together(manifest.objects):
            if repository.is_full:
                if not (is_whole or is_begun):  # so that it reads as unfinished, and as this one
                    repository.stage({BUILD_NAME: manifest.to_bytes()})
                    is_begun = True
                standing = repository.commit(f"A part of the cache {manifest.digest}", stale & {MANIFEST_NAME})
                files, stale = standing.files(), stale - {MANIFEST_NAME}
            read_all = zip(names, executor.map(unsent, names), strict=True)
            if objects := {name: data for name, data in read_all if data is not None}:
                repository.stage(objects)
                num_sent, num_bytes = num_sent + len(objects), num_bytes + sum(map(len, objects.values()))
            advance(sum(manifest.objects[name].size for name in names))
        gone = (stale | ({BUILD_NAME} if is_begun else set())) - {MANIFEST_NAME, *manifest.objects}
        if not is_whole:
            repository.stage({MANIFEST_NAME: manifest.to_bytes()})
        if not is_whole or num_sent or gone:
            standing = repository.commit(f"The cache {manifest.digest}", gone)
    return standing.location, num_sent, num_bytes


def _together(objects: Mapping[str, ObjectRecord]) -> Iterator[list[str]]:
    """The names of objects, in runs that fit in memory together."""
    names, size = [], 0
    for name in sorted(objects):
        if names and (len(names) == _MOST_TOGETHER or size + objects[name].size > _BYTES_TOGETHER):
            yield names
            names, size = [], 0
        names.append(name)
        size += objects[name].size
    yield names


def _opened(repository: Repository, create: bool) -> Listed:
    standing = repository.opened()
    if standing is None and create:
        repository.create()
        standing = repository.opened()
    if standing is None:
        raise StoreError(
            f"{repository.location}: there is no such dataset repository, or not for you; check its name, make it with "
            "--create (only you will see it), or log in (hf auth login), or set HF_TOKEN"
        )
    return standing


def _others(standing: Listed, manifest: Manifest, files: Mapping[str, Known], replace: bool) -> set[str]:
    """The objects of another cache, finished or not, that is to go; none where the place is this cache's alone.

    Raises:
        MismatchError, CacheError: another cache, which is to stay, or something else is there.
    """
    for name, what in ((MANIFEST_NAME, "cache"), (BUILD_NAME, "unfinished copy")):
        if name in files:
            found = Manifest.from_bytes(standing.read(name, MANIFEST_LIMIT), name)
            if found.digest == manifest.digest:
                return set()
            if not replace:
                raise MismatchError(
                    f"{standing.location} holds another {what}, {found.digest}, not {manifest.digest}; name another "
                    "folder of it (NAME/FOLDER) or another repository, or replace it with --replace: its commits stay"
                )
            return {MANIFEST_NAME, BUILD_NAME, *found.objects} & files.keys()
    if foreign := [name for name in files if name != README_NAME]:
        raise CacheError(
            f"{standing.location} is not empty ({short(foreign[0])}) and holds no cache; name another folder of it"
        )
    return set()
