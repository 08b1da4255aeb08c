"""A folder of objects with relative names: durable atomic writes, bounded reads, nothing outside the folder."""

import hashlib
import os
import re
import shutil
import stat
from pathlib import Path
from typing import BinaryIO

from gdkd_cache.errors import CacheError
from gdkd_cache.schema import short
from gdkd_cache.store.manifest import ObjectRecord

# One name syntax for all objects: no `..`, no hidden or absolute names, nothing that a shell would read.
_NAME = re.compile(r"[a-z0-9_][a-z0-9_.-]*(/[a-z0-9_][a-z0-9_.-]*)*")
_PARTIAL = ".partial"
_LONGEST_NAME = 200
_PIECE = 2**20


class Folder:
    """Objects under one local folder; `name` is always relative, with `/`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        """Where an object lies.

        Raises:
            CacheError: the name could escape the folder, or a link leads out of it.
        """
        if not _NAME.fullmatch(name) or ".." in name or len(name) > _LONGEST_NAME:
            raise CacheError(f"{self.root}: {short(name)} is not an object name")
        path = self.root / name
        if path.parent.resolve() != self.root.resolve() / Path(name).parent or path.is_symlink():
            raise CacheError(f"{self.root}: {name} is reached through a symbolic link; copy the data instead")
        return path

    def create(self) -> None:
        """Make the folder itself, durably; it may exist."""
        new = [folder for folder in (self.root, *self.root.parents) if not folder.exists()]
        self.root.mkdir(parents=True, exist_ok=True)
        for folder in new:
            _fsync_folder(folder.parent)

    def exists(self, name: str) -> bool:
        return self.path(name).is_file()

    def read(self, name: str, limit: int) -> bytes:
        """Read an object whole, at most `limit` + 1 bytes of it.

        Raises:
            CacheError: it does not exist, or is no plain file.
        """
        with self._open(name) as file:
            return file.read(limit + 1)

    def record(self, name: str, limit: int) -> ObjectRecord:
        """Size and checksum of an object, of at most `limit` + 1 bytes of it, in little memory.

        Raises:
            CacheError: it does not exist, or is no plain file.
        """
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
            raise CacheError(f"{self.root}: {name} is no plain file; remove it and copy the cache again")
        return os.fdopen(descriptor, "rb")

    def write(self, name: str, data: bytes) -> None:
        """Write an object so that after a crash it is either whole or absent, then read it back.

        Temporary name, fsync, rename, fsync of every folder that may be new.

        Raises:
            CacheError: what is read back is not what was written.
            OSError: the disk is full, or permission is missing.
        """
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}{_PARTIAL}")
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException as error:
            if isinstance(error, OSError):
                error.filename = error.filename or str(path)  # a full disk does not say where
            partial.unlink(missing_ok=True)
            raise
        folder = path.parent
        while True:
            _fsync_folder(folder)
            if folder == self.root:
                break
            folder = folder.parent
        if path.read_bytes() != data:
            raise CacheError(f"{path}: what was read back is not what was written; check the disk")

    def delete(self, name: str) -> None:
        """Remove an object or a whole sub-folder, durably; absent is fine."""
        path = self.path(name)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        if path.parent.is_dir():
            _fsync_folder(path.parent)

    def remove_partials(self) -> None:
        """Remove what writes that were killed have left."""
        for path in self.root.rglob(f"*{_PARTIAL}"):
            path.unlink()

    def names(self) -> list[str]:
        """Names of all files, sorted; leftovers of interrupted writes are not objects and are left out."""
        files = (p for p in self.root.rglob("*") if (p.is_symlink() or not p.is_dir()) and p.suffix != _PARTIAL)
        return sorted(p.relative_to(self.root).as_posix() for p in files)


def _fsync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
