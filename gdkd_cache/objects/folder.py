"""A folder of objects with relative names: durable atomic writes, bounded reads, nothing outside the folder."""

import hashlib
import os
import re
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from gdkd_cache.errors import CacheError
from gdkd_cache.files import locked
from gdkd_cache.objects.names import check_name, is_hidden
from gdkd_cache.objects.record import ObjectRecord

_PARTIAL = re.compile(r".+\.[0-9a-f]{32}\.partial")
_PIECE = 2**20


class Folder:
    """`WritableObjects` under one local folder; `name` is always relative, with `/`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._alone: int | None = None

    @property
    def location(self) -> str:
        return str(self.root)

    def prepare(self) -> None:
        new = [folder for folder in (self.root, *self.root.parents) if not folder.exists()]
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise CacheError(f"{self.root}: a file is in the way; name a folder") from None
        for folder in new:
            _fsync_folder(folder.parent)

    def sweep(self) -> None:
        for parent, _, files in os.walk(self.root):  # which passes over folders that another process removes
            for name in files:
                if _PARTIAL.fullmatch(name):
                    Path(parent, name).unlink(missing_ok=True)

    def path(self, name: str) -> Path:
        """Where an object lies.

        Raises:
            CacheError: the name could escape the folder, or a link leads out of it.
        """
        check_name(self.location, name)
        path = self.root / name
        if path.parent.resolve() != self.root.resolve() / Path(name).parent or path.is_symlink():
            raise CacheError(f"{self.root}: {name} is reached through a symbolic link; copy the data instead")
        return path

    def size(self, name: str) -> int | None:
        path = self.path(name)
        return path.stat().st_size if path.is_file() else None

    def sizes(self, folder: str | None = None) -> dict[str, int]:
        root = self.root if folder is None else self.path(folder)
        found = {}
        for parent, folders, files in os.walk(root, onerror=_unless_gone):
            folders[:] = [name for name in folders if not is_hidden(name)]
            for path in (Path(parent) / name for name in (*folders, *files) if not is_hidden(name)):
                # What interrupted writes have left is no object; a link is one, to be told of, whatever it leads to.
                if not _PARTIAL.fullmatch(path.name) and (path.is_symlink() or not path.is_dir()):
                    with suppress(FileNotFoundError):  # removed meanwhile
                        found[path.relative_to(self.root).as_posix()] = path.lstat().st_size
        return dict(sorted(found.items()))

    def read(self, name: str, limit: int) -> bytes:
        with self._open(name) as file:
            return file.read(limit + 1)

    def record(self, name: str, limit: int) -> ObjectRecord:
        size, sha256 = 0, hashlib.sha256()
        with self._open(name) as file:
            while piece := file.read(min(_PIECE, limit + 1 - size)):
                size += len(piece)
                sha256.update(piece)
        return ObjectRecord(size, sha256.hexdigest())

    def _open(self, name: str) -> BinaryIO:
        path = self.path(name)
        try:
            # Not through a link that appeared meanwhile; and a pipe must not block before it is refused.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            raise CacheError(f"{self.root}: {name} is missing") from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise CacheError(f"{self.root}: {name} is no plain file; remove it and copy the data again")
        return os.fdopen(descriptor, "rb")

    def stamp(self, name: str) -> str | None:
        path = self.path(name)
        with suppress(FileNotFoundError, NotADirectoryError):
            found = path.stat()
            return f"{found.st_ino} {found.st_mtime_ns} {found.st_size}"
        return None

    @contextmanager
    def alone(self) -> Iterator[None]:
        with locked(self.root, self._waiting):
            self._alone = threading.get_ident()
            try:
                yield
            finally:
                self._alone = None

    @contextmanager
    def _while_allowed(self, allowed: Callable[[], None] | None) -> Iterator[None]:
        """Let nobody be alone here between the question and what is done in the block."""
        is_alone = self._alone == threading.get_ident()
        with nullcontext() if allowed is None or is_alone else locked(self.root, self._waiting, alone=False):
            if allowed is not None:
                allowed()
            yield

    @property
    def _waiting(self) -> str:
        return f"waiting for a process that is in the midst of writing to {self.location}"

    def write(self, name: str, data: bytes, *, allowed: Callable[[], None] | None = None) -> None:
        self._put(name, data, allowed, Path.replace)

    def create(self, name: str, data: bytes, *, allowed: Callable[[], None] | None = None) -> bool:
        try:
            self._put(name, data, allowed, _link)
        except FileExistsError:
            return self.read(name, len(data)) == data
        return True

    def _put(
        self, name: str, data: bytes, allowed: Callable[[], None] | None, move: Callable[[Path, Path], object]
    ) -> None:
        while True:
            with self._partial(name, data) as partial, self._while_allowed(allowed):
                try:
                    move(partial, self.path(name))
                    return
                except FileNotFoundError:  # another process, which has finished, swept it up as left by a dead one
                    continue

    def holds(self, name: str, record: ObjectRecord, read: Callable[[], bytes]) -> bool:
        return self.record(name, record.size) == record

    @contextmanager
    def _partial(self, name: str, data: bytes) -> Iterator[Path]:
        """A durable file of `data`, read back, to be moved in place; then every folder that may be new is durable."""
        path = self.path(name)
        partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")
        try:
            with _opened_in_its_folder(partial) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if partial.read_bytes() != data:
                raise CacheError(f"{path}: what was read back is not what was written; check the disk")
            yield partial
        except OSError as error:
            error.filename = error.filename or str(path)  # a full disk does not say where
            raise
        finally:
            partial.unlink(missing_ok=True)
        folder = path.parent
        while True:
            with suppress(FileNotFoundError):  # what was written has been removed again by another process
                _fsync_folder(folder)
            if folder == self.root:
                break
            folder = folder.parent

    def delete(self, names: Iterable[str], *, allowed: Callable[[], None] | None = None) -> None:
        paths = [self.path(name) for name in names]
        if not paths or not self.root.exists():
            return
        with self._while_allowed(allowed):
            for path in paths:
                with suppress(NotADirectoryError):
                    path.unlink(missing_ok=True)
        for folder in sorted({path.parent for path in paths}, key=lambda folder: -len(folder.parts)):
            while folder != self.root:
                with suppress(OSError):  # it holds something else
                    folder.rmdir()
                folder = folder.parent
        _fsync_folder(self.root)


def _link(partial: Path, path: Path) -> None:
    """Give a file its name where none stands.

    Raises:
        FileExistsError: one does.
    """
    try:
        os.link(partial, path)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # a file system without hard links: two steps, the second still atomic
        if path.exists():
            raise FileExistsError(path) from None
        partial.replace(path)


def _opened_in_its_folder(path: Path) -> BinaryIO:
    """A new file; its folder is made, again if another process removes it as empty in this moment."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            return path.open("xb")


def _unless_gone(error: OSError) -> None:
    """A folder that another process has just removed holds nothing; nor does a file."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _fsync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
