"""Files that a user names, read of bounded size and only where they are plain files; and the lock of a folder."""

import fcntl
import logging
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

from gdkd_cache.errors import GdkdCacheError, MismatchError

_LOG = logging.getLogger(__name__)
_POLL_SECONDS = 0.01
_PATIENCE = 200
"""Polls before it is said what is waited for."""


def open_plain(path: Path, what: str, error: type[GdkdCacheError]) -> BufferedReader:
    """Open a plain file to read; a folder, a pipe or a device is refused at once, without waiting for its other end.

    Args:
        path: the file, or a link to it.
        what: the file's name in messages, such as `weights`.
        error: what is raised.

    Raises:
        GdkdCacheError: as `error`: it does not exist, or is no plain file.
        OSError: it cannot be opened.
    """
    try:
        # A pipe that nobody writes to would block before it could be refused.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"{what} {path} does not exist") from None
    except OSError as failed:
        if path.is_socket():  # which cannot be opened at all
            raise error(_no_file(what, path)) from None
        failed.filename = str(path)
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise error(f"{what} {path} is a folder; name a file" if stat.S_ISDIR(mode) else _no_file(what, path))
    return os.fdopen(descriptor, "rb")


def read_bounded(path: Path, limit: int, what: str, error: type[GdkdCacheError]) -> bytes:
    """The whole content of a plain file; never more than `limit` bytes are read.

    Args:
        path, what, error: as for `open_plain`.
        limit: the most bytes that it may have.

    Raises:
        GdkdCacheError: as `error`: it does not exist, is no plain file, or is larger.
        OSError: it cannot be read.
    """
    with open_plain(path, what, error) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise error(f"{what} {path} is larger than {limit} bytes, the most that are read")
    return data


def require_free(out: Path, *, force: bool) -> None:
    """See that a file can be written: before the work that makes it, not after.

    Args:
        out: the file.
        force: whether a plain file of that name may be replaced.

    Raises:
        MismatchError: something has that name already, or its folder does not exist.
    """
    if not out.parent.is_dir():
        raise MismatchError(f"{out.parent} is no folder; make it, or name another --out")
    if out.exists() and not out.is_file():
        raise MismatchError(f"{out} is no plain file; name another --out")
    if out.exists() and not force:
        raise MismatchError(f"{out} exists; name another --out, or add --force to replace it")


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that it is the old one or the new one, never a part.

    Raises:
        OSError: it cannot be written; the old one stays.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)  # a full disk does not say where
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def locked(folder: Path, waiting: str, *, alone: bool = True) -> Iterator[None]:
    """Hold a folder's lock: alone, or beside others who do not hold it alone.

    It ends with the process at the latest; one that is stopped still holds it. A file system without locks has none.

    Args:
        folder: it exists.
        waiting: what is said of a long wait.
        alone: whether nobody else may hold it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    how = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    try:
        with suppress(OSError):
            if not _locked_soon(descriptor, how):
                _LOG.info("%s", waiting)
                fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def _locked_soon(descriptor: int, how: int) -> bool:
    for _ in range(_PATIENCE):
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            return True
        time.sleep(_POLL_SECONDS)
    return False


def _no_file(what: str, path: Path) -> str:
    return f"{what} {path} is no plain file but a pipe, a socket or a device; name a file"
