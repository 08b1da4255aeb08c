"""The members of one tar shard; nothing is allocated, and nothing left out, because a header says so."""

import bz2
import gzip
import io
import lzma
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tarfile import BLOCKSIZE, RECORDSIZE, ReadError, TarFile, TarInfo
from typing import Any, cast

from gdkd_cache.errors import GdkdCacheError, SourceError, first_line
from gdkd_cache.files import open_plain
from gdkd_cache.limits import LEAST_UNPACKED, MOST_IMAGE_BYTES, MOST_UNPACKED

_COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_HEADER_BYTES = 2**18
"""Of what describes a member, such as a long name: tarfile reads what it says at once, and some within each other."""
_END = bytes(2 * BLOCKSIZE)


class Archive:
    """A tar shard that is open, as long as `open_archive` says.

    Args:
        file: its bytes, unpacked.
        size: the most that they may be.
    """

    def __init__(self, file: io.BufferedIOBase, size: int) -> None:
        self._file, self._size = file, size

    def members(self) -> Iterator[TarInfo]:
        """The regular members, in order; then it is checked that the archive ends there.

        Raises:
            ReadError: it does not, or a member says that it is larger than the archive.
        """
        claims: Any = _Claims(self._file, self._size)
        with TarFile(fileobj=claims, encoding="utf-8", errors="surrogateescape") as tar:
            while (member := tar.next()) is not None:
                vars(tar)["members"].clear()  # it would keep all
                if member.size < 0 or (member.isreg() and member.size > self._size - member.offset_data):
                    raise ReadError(
                        f"member {member.name!r} says that it has {member.size:,} bytes, more than there can be"
                    )
                if member.isreg() and not member.issparse():
                    yield member
            self._check_end(tar.offset)

    def place(self, member: TarInfo) -> tuple[int, int]:
        """Where a member's content lies: offset and size in bytes.

        Raises:
            ReadError: it is larger than any image.
        """
        if member.size > MOST_IMAGE_BYTES:
            raise ReadError(f"member {member.name!r} has {member.size:,} bytes, an image at most {MOST_IMAGE_BYTES:,}")
        return member.offset_data, member.size

    def read(self, member: TarInfo) -> bytes:
        """A member's content.

        Raises:
            ReadError: as `place`.
        """
        offset, size = self.place(member)
        self._file.seek(offset)
        return self._file.read(size)

    def _check_end(self, offset: int) -> None:
        """tarfile takes a cut between two members, and a damaged header, for the end."""
        self._file.seek(offset)
        rest = self._file.read(RECORDSIZE + len(_END))
        if any(rest[:BLOCKSIZE]):
            raise ReadError(f"what begins at byte {offset:,} is no header of a member")
        if not rest.startswith(_END):
            raise ReadError(
                f"it ends at byte {offset:,} without an end marker, as if cut there (if its writer left that out, "
                f"append {len(_END)} zero bytes)"
            )
        if any(rest):
            raise ReadError(f"it goes on after its end at byte {offset:,}, like two archives in one file")


@contextmanager
def open_archive(shard: Path, place: str, *, plain: bool) -> Iterator[Archive]:
    """Open a tar shard, for as long as its members are read.

    Args:
        shard: the file.
        place: its name, for messages.
        plain: refuse a compressed one, as its members have no place in the file.

    Raises:
        SourceError: it does not exist, is no plain file, no intact tar file, cut, or unpacks to much more than its
            size; also in place of what is raised while it is open.
    """
    with open_plain(shard, "wds: shard", SourceError) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            start = file.read(max(map(len, _COMPRESSED)))
            file.seek(0)
            unpack = next((unpack for magic, unpack in _COMPRESSED.items() if start.startswith(magic)), None)
            if unpack is None:
                yield Archive(cast(io.BufferedIOBase, file), size)
            elif plain:
                raise SourceError(f"wds: {place} is compressed; only plain tar files can be streamed")
            else:
                with cast(io.BufferedIOBase, unpack(file)) as unpacked:
                    yield Archive(unpacked, max(MOST_UNPACKED * size, LEAST_UNPACKED))
        except GdkdCacheError:
            raise
        except Exception as error:  # tarfile and the decompressors raise anything, from ValueError to RecursionError
            raise SourceError(f"wds: {place} is no intact tar file: {first_line(error)}; copy it again") from None


class _Claims(io.RawIOBase):
    """The archive as tarfile sees it: asked for more at once, or further on, than can be true, it refuses."""

    def __init__(self, file: io.BufferedIOBase, size: int) -> None:
        self._file, self._size = file, size

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= _HEADER_BYTES:
            raise ReadError(f"a header says that it goes on for {size:,} bytes")
        if self._file.tell() > self._size:
            raise ReadError(f"it unpacks to more than {self._size:,} bytes, many times its size")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        if offset > self._size:
            raise ReadError("it ends within a member")
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()
