"""A folder of objects with relative names: durable atomic writes, bounded reads, nothing outside the folder."""

import os
import re
import shutil
from pathlib import Path

from gdkd_cache.errors import CacheError

# One name syntax for all objects: no `..`, no hidden or absolute names, nothing that a shell would read.
_NAME = re.compile(r"[a-z0-9_][a-z0-9_.-]*(/[a-z0-9_][a-z0-9_.-]*)*")
_PARTIAL = ".partial"


class Folder:
    """Objects under one local folder; `name` is always relative, with `/`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        """Where an object lies.

        Raises:
            CacheError: the name could escape the folder, or a link leads out of it.
        """
        if not _NAME.fullmatch(name) or ".." in name:
            raise CacheError(f"{self.root}: {name!r} is not an object name")
        path = self.root / name
        if path.parent.resolve() != self.root.resolve() / Path(name).parent or path.is_symlink():
            raise CacheError(f"{self.root}: {name} is reached through a symbolic link; copy the data instead")
        return path

    def size(self, name: str) -> int | None:
        """Size of an object in bytes, None when it does not exist."""
        path = self.path(name)
        return path.stat().st_size if path.is_file() else None

    def read(self, name: str, limit: int) -> bytes:
        """Read an object whole, at most `limit` + 1 bytes of it.

        Raises:
            CacheError: it does not exist.
        """
        try:
            with self.path(name).open("rb") as file:
                return file.read(limit + 1)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise CacheError(f"{self.root}: {name} is missing") from None

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
        """Remove an object or a whole sub-folder; absent is fine."""
        path = self.path(name)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def remove_partials(self) -> None:
        """Remove what writes that were killed have left."""
        for path in self.root.rglob(f"*{_PARTIAL}"):
            path.unlink()

    def names(self) -> list[str]:
        """Names of all files, sorted; leftovers of interrupted writes are not objects and are left out."""
        files = (p for p in self.root.rglob("*") if not p.is_dir() and p.suffix != _PARTIAL)
        return sorted(p.relative_to(self.root).as_posix() for p in files)


def _fsync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
