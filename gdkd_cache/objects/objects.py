"""Objects by name, wherever they lie: what can be read anywhere, and what can be written in folders and stores."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, runtime_checkable

from gdkd_cache.errors import UsageError
from gdkd_cache.objects.folder import Folder
from gdkd_cache.objects.record import ObjectRecord
from gdkd_cache.objects.urls import scheme_of, split_url, without_secrets
from gdkd_cache.registry import Entry, Registry

_HERE = "gdkd_cache.objects"
STORES: "Registry[Callable[[str], Objects]]" = Registry(
    "store",
    {
        "s3": Entry(f"{_HERE}.bucket:Bucket", "S3 and what speaks its protocol"),
        "gs": Entry(f"{_HERE}.bucket:Bucket", "Google Cloud Storage"),
        "az": Entry(f"{_HERE}.bucket:Bucket", "Azure"),
        "https": Entry(f"{_HERE}.remote:WebServer", "a web server, to read only"),
        "http": Entry(f"{_HERE}.remote:WebServer", "a web server on this machine, to read only"),
        "hf": Entry(f"{_HERE}.hub:Hub", "a dataset repository of the Hugging Face Hub, at one commit"),
    },
)
"""What opens a URL, by its scheme; obstore is imported where it is needed, as folders are most of what is opened."""
REPOSITORIES: "Registry[Callable[[str], Repository]]" = Registry(
    "repository", {"hf": Entry(f"{_HERE}.hub_branch:HubBranch", "a branch of such a repository")}
)
"""What writes to a URL, by its scheme, where objects are not written one by one."""
Allowed = Callable[[], None]


@runtime_checkable
class Objects(Protocol):
    """Objects with relative names, to read.

    Every method raises CacheError for a name that is none, and StoreError or OSError where the place cannot be
    reached, read or written.
    """

    @property
    def location(self) -> str:
        """The place as messages tell it: a path, or a URL without credentials."""
        ...

    def size(self, name: str) -> int | None:
        """Size of an object in bytes, None when it does not exist."""
        ...

    def sizes(self, folder: str | None = None) -> dict[str, int]:
        """Sizes of all objects (of a sub-folder) by name, in name order; a web server cannot tell, and gives none.

        Hidden names are nobody's objects, and left out.
        """
        ...

    def read(self, name: str, limit: int) -> bytes:
        """Read an object whole, at most `limit` + 1 bytes of it.

        Raises:
            CacheError: it does not exist.
        """
        ...

    def record(self, name: str, limit: int) -> ObjectRecord:
        """Size and checksum of an object, of at most `limit` + 1 bytes of it.

        Raises:
            CacheError: it does not exist.
        """
        ...


@runtime_checkable
class WritableObjects(Objects, Protocol):
    """Objects that can be written, whole or not at all."""

    def prepare(self) -> None:
        """Make ready for writing: the place exists.

        Raises:
            CacheError: a file is in the way.
        """
        ...

    def sweep(self) -> None:
        """Remove what killed writes have left beside the objects, once all that was to be written stands."""
        ...

    def stamp(self, name: str) -> str | None:
        """What changes whenever an object is written anew; None when it does not exist."""
        ...

    def alone(self) -> AbstractContextManager[None]:
        """While it is held, nothing is written here with `allowed`, and nobody else is alone.

        Object stores have no such lock: there, what is written with `allowed` is refused if the object changed since.
        """
        ...

    def write(self, name: str, data: bytes, *, allowed: Allowed | None = None) -> None:
        """Write an object so that after a crash it is either whole or absent, and make sure that it holds `data`.

        Args:
            name, data: of the object.
            allowed: asked first; raises what stops the writing. Nothing that others wrote after it answered, however
                long this process sleeps in between, is overwritten.

        Raises:
            CacheError, StoreError: it holds something else.
        """
        ...

    def create(self, name: str, data: bytes, *, allowed: Allowed | None = None) -> bool:
        """`write` only where no such object stands, decided in one step: does the object hold `data` now?"""
        ...

    def holds(self, name: str, record: ObjectRecord, read: Callable[[], bytes]) -> bool:
        """Whether an object that stands is the recorded one; `read` gives its bytes from elsewhere, if that helps."""
        ...

    def delete(self, names: Iterable[str], *, allowed: Allowed | None = None) -> None:
        """Remove objects, and folders that are empty then; absent is fine."""
        ...


@runtime_checkable
class Repository(Protocol):
    """A place that changes in commits, each of which readers see whole or not at all, and which keeps the old ones."""

    @property
    def location(self) -> str:
        """The place as messages tell it."""
        ...

    def opened(self) -> "Listed | None":
        """What stands there now, which what is committed next builds on; None where there is no such repository.

        Raises:
            StoreError: it cannot be reached, or refuses.
        """
        ...

    def create(self) -> None:
        """Make the repository, which only its owner sees; one that stands is fine."""
        ...

    @property
    def is_full(self) -> bool:
        """Whether what is staged is as much as one commit should hold."""
        ...

    def stage(self, objects: Mapping[str, bytes]) -> None:
        """Send objects, to be part of the next commit; what an interrupted run has sent is not sent again."""
        ...

    def commit(self, message: str, delete: Iterable[str] = ()) -> "Listed":
        """Let what is staged stand, and some objects not, and make sure that it does.

        Raises:
            StoreError: somebody else changed the place since `opened`, or it holds something else.
        """
        ...


@runtime_checkable
class Listed(Objects, Protocol):
    """Objects of which the place knows what they hold."""

    def files(self, folder: str | None = None) -> "Mapping[str, Known]":
        """All objects by name, in name order."""
        ...


@runtime_checkable
class Known(Protocol):
    """What a place knows of an object."""

    @property
    def size(self) -> int: ...

    def holds(self, record: ObjectRecord, read: Callable[[], bytes]) -> bool:
        """Whether the object is the recorded one; `read` gives its bytes from elsewhere, if that helps."""
        ...


def open_objects(location: str | Path) -> Objects:
    """The objects of a folder (a path), an object store (`s3://`, `gs://`, `az://`), a web server (`https://`) or a
    dataset repository (`hf://`).

    Raises:
        UsageError: a URL that is broken or of another kind, or one with credentials in it.
        StoreError: the environment's settings for the object store are wrong, or there is no such repository.
    """
    if isinstance(location, Path) or scheme_of(location) is None:
        return Folder(Path(location))
    return STORES.load(split_url(location, tuple(STORES)).scheme)(location)


def open_writable(location: str | Path) -> WritableObjects:
    """As `open_objects`, to write.

    Raises:
        UsageError: also a place that is read-only.
    """
    if repository_scheme(location) is not None:
        raise UsageError(
            f"{without_secrets(str(location))}: hf:// is written in commits; write to a folder, then gdkd-cache push it"
        )
    objects = open_objects(location)
    if not isinstance(objects, WritableObjects):
        raise UsageError(f"{objects.location}: a web server is read-only; write to a folder, s3://, gs:// or az://")
    return objects


def repository_scheme(location: str | Path) -> str | None:
    """The scheme of a URL that is written in commits; None for any other place."""
    scheme = None if isinstance(location, Path) else scheme_of(location)
    return scheme if scheme in REPOSITORIES else None


def open_repository(location: str | Path) -> Repository | None:
    """What writes to a place in commits; None for a place that takes objects one by one.

    Raises:
        UsageError: a URL that is broken, or a commit.
    """
    scheme = repository_scheme(location)
    return None if scheme is None else REPOSITORIES.load(scheme)(str(location))
