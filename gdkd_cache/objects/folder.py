"""A folder of objects with relative names: durable atomic writes, bounded reads, nothing outside the folder."""

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from gdkd_cache.errors import CacheError
from gdkd_cache.objects.names import check_name
from gdkd_cache.objects.record import ObjectRecord

_PARTIAL = ".partial"
_PIECE = 2**20


class Folder:
    """`WritableObjects` under one local folder; `name` is always relative, with `/`."""

    def __init__(self, root: Path) -> None:
        self.root = root

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
                if name.endswith(_PARTIAL):
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
            for path in (Path(parent) / name for name in (*folders, *files)):
                # What interrupted writes have left is no object; a link is one, to be told of, whatever it leads to.
                if path.suffix != _PARTIAL and (path.is_symlink() or not path.is_dir()):
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

    def write(self, name: str, data: bytes) -> None:
        with self._partial(name, data) as partial:
            partial.replace(self.path(name))
        self._check(name, data)

    def create(self, name: str, data: bytes) -> bool:
        path = self.path(name)
        with self._partial(name, data) as partial:
            try:
                os.link(partial, path)
            except FileExistsError:
                return self.read(name, len(data)) == data
            except OSError:  # a file system without hard links: two steps, the second still atomic
                if path.exists():
                    return self.read(name, len(data)) == data
                partial.replace(path)
        self._check(name, data)
        return True

    def _check(self, name: str, data: bytes) -> None:
        if self.path(name).read_bytes() != data:
            raise CacheError(f"{self.path(name)}: what was read back is not what was written; check the disk")

    def holds(self, name: str, record: ObjectRecord, read: Callable[[], bytes]) -> bool:
        return self.record(name, record.size) == record

    @contextmanager
    def _partial(self, name: str, data: bytes) -> Iterator[Path]:
        """A durable file of `data` beside the object, to be moved in place; then every folder that may be new is."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{uuid4().hex}{_PARTIAL}")
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield partial
        except OSError as error:
            error.filename = error.filename or str(path)  # a full disk does not say where
            raise
        finally:
            partial.unlink(missing_ok=True)
        folder = path.parent
        while True:
            _fsync_folder(folder)
            if folder == self.root:
                break
            folder = folder.parent

    def delete(self, name: str) -> None:
        path = self.path(name)
        while path.is_dir():
            try:
                shutil.rmtree(path)
            except OSError as error:  # another process removes it too, or writes into it still
                if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                    raise
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            _fsync_folder(path.parent)


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
