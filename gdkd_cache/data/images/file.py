"""Decoded pixels in a file on local disk, made once and shared by processes and runs.

The file is: the length of the head, 8 bytes; the head, which says of what the pixels are; for each row height, width
and hash of what is kept of it; a hash of all that; what is kept of the rows, in order: the mask, int16 [height, width],
where there are masks, and the pixels, uint8 [height, width, 3]. It is read rather than mapped: a file that is cut
meanwhile ends in an error and not in a signal, and views need a copy to write to anyway.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from xxhash import xxh3_64_intdigest

from gdkd_cache.data.images.standing import StandingSource, standing_for
from gdkd_cache.data.loader import default_num_workers
from gdkd_cache.data.masks import EncodedMasks, MaskFiles
from gdkd_cache.data.shards.source import ShardSource
from gdkd_cache.data.source import EncodedSource, FullSource
from gdkd_cache.data.views import check_image
from gdkd_cache.errors import SourceError, UsageError
from gdkd_cache.files import locked
from gdkd_cache.progress import progress
from gdkd_cache.threads import mapped

_LOG = logging.getLogger(__name__)
_FORMAT = 1
_ROW = np.dtype([("height", "<u4"), ("width", "<u4"), ("hash", "<u8")])
_SAMPLE = 64
_ROWS_AT_ONCE = 4
_SUFFIX = ".pixels"


@dataclass(frozen=True, kw_only=True, eq=False)
class _Kept(StandingSource):
    """A source whose pixels, decoded to one side or whole, lie in a file; what is asked otherwise, it decodes."""

    side: int | None
    path: Path
    index: np.ndarray = field(repr=False)
    start: int

    def decode(self, row: int, side: int | None) -> np.ndarray:
        """The row's image, as the source gives it.

        Raises:
            SourceError: the file is damaged or gone, or the source cannot decode it.
        """
        return self._read(row)[0] if side == self.side else self.source.decode(row, side)

    def mask(self, row: int) -> np.ndarray:
        """The row's mask, as the source gives it.

        Raises:
            SourceError: as `decode`.
        """
        return self._read(row)[1]

    def __getitem__(self, row: int) -> tuple[np.ndarray, Any]:
        return self._read(row) if self.has_masks else super().__getitem__(row)

    def _read(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """The row's image and its mask; of a source without masks that is empty."""
        height, width, expected = self.index[row].tolist()
        kept = np.empty(height * width * _bytes(self), np.uint8)
        try:
            found = os.preadv(self._descriptor, [kept.data], int(self._offsets[row]))
        except OSError as error:
            raise SourceError(f"decoded images {self.path} cannot be read: {error.strerror}") from None
        if found != kept.nbytes or xxh3_64_intdigest(kept.data) != expected:
            raise SourceError(
                f"image {self.keys[row]!r} is damaged in the decoded images {self.path}; remove that file"
            )
        mask, pixels = np.split(kept, [len(kept) - 3 * height * width])
        return pixels.reshape(height, width, 3), mask.view("<i2").reshape(-1, width)

    @cached_property
    def _offsets(self) -> np.ndarray:
        return _offsets(self.index, self.start, _bytes(self))

    @cached_property
    def _descriptor(self) -> int:
        descriptor = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)
        return descriptor

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name not in ("_offsets", "_descriptor")}


def in_file(source: FullSource, side: int | None, folder: Path) -> FullSource:
    """The source with its decoded pixels in a file of the folder, which is made where there is none that is whole.

    The file goes by what it is made of: keys and labels, sizes and times of the image files (of a user's own source,
    its digest alone), how they are decoded and by which Pillow. Another process that makes one there is waited for.

    Args:
        source: the images; of any sizes.
        side: how they are decoded; see `FullSource.decode`.
        folder: on a local disk; made where there is none.

    Raises:
        UsageError: the images come over the network as they are needed.
        SourceError: an image cannot be read, or the disk has not the room.
        OSError: the folder cannot be written.
    """
    if source.remote is not None:
        raise UsageError("--decoded keeps images that lie on this machine; bring these over with --local-copy")
    about = {
        "format": _FORMAT,
        "source": source.digest,
        "files": _files_digest(source),
        "rows": len(source),
        "side": side,
        "pillow": PIL.__version__,
        **({"masks": True} if source.has_masks else {}),
    }
    head = json.dumps(about, sort_keys=True).encode()
    path = folder / f"{hashlib.sha256(head).hexdigest()[:32]}{_SUFFIX}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, f"another process decodes images to {folder}: waiting for it"):
        index = _read_index(path, head, source)
        if index is None:
            _write(path, head, source, side)
            index = _read_index(path, head, source)
    if index is None:
        raise SourceError(f"decoded images {path} are not what was written; check that disk")
    return _Kept(side=side, path=path, index=index, start=_start(head, len(source)), **standing_for(source))


def _files_digest(source: FullSource) -> str:
    """Of what tells that a source's image files are others; nothing is known of those of a user's own source."""
    digest = hashlib.sha256()
    if isinstance(source, EncodedSource):
        for file in source.files:
            digest.update(file if isinstance(file, bytes) else _stat(file))
    elif isinstance(source, ShardSource):
        for part in (*map(_stat, source.shards), source.offsets.tobytes(), source.sizes.tobytes()):
            digest.update(part)
    if isinstance(source.masks, EncodedMasks):
        digest.update(source.masks.ids.tobytes())
        for row in range(len(source)) if isinstance(source.masks, MaskFiles) else ():
            file = source.masks.file(row)
            digest.update(file if isinstance(file, bytes) else _stat(file))
    return digest.hexdigest()


def _stat(file: Path) -> bytes:
    try:
        found = file.stat()
    except OSError:  # it is named when it is decoded
        return b"?"
    return b"%d %d\n" % (found.st_size, found.st_mtime_ns)


def _start(head: bytes, rows: int) -> int:
    """Where the pixels begin."""
    return 8 + len(head) + rows * _ROW.itemsize + 8


def _bytes(source: FullSource) -> int:
    """How many are kept of each pixel."""
    return 3 + 2 * source.has_masks


def _offsets(index: np.ndarray, start: int, size: int) -> np.ndarray:
    """Where what is kept of each row begins, and the last one ends, of so many bytes a pixel: int64 [row + 1]."""
    sizes = index["height"].astype(np.int64) * index["width"] * size
    return start + np.concatenate([[0], np.cumsum(sizes)])


def _read_index(path: Path, head: bytes, source: FullSource) -> np.ndarray | None:
    """The rows' sizes and hashes; None where there is no such file, or it is another, cut or damaged."""
    start = _start(head, len(source))
    try:
        with path.open("rb") as file:
            begun, size = file.read(start), os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return None
    index = np.frombuffer(begun[8 + len(head) : -8], _ROW) if len(begun) == start else np.empty(0, _ROW)
    whole = begun == _beginning(head, index) and _offsets(index, start, _bytes(source))[-1] == size
    if not whole:
        _LOG.info("decoded images %s are damaged: they are made again", path)
    return index if whole else None


def _beginning(head: bytes, index: np.ndarray) -> bytes:
    content = len(head).to_bytes(8, "little") + head + index.tobytes()
    return content + xxh3_64_intdigest(content).to_bytes(8, "little")


def _write(path: Path, head: bytes, source: FullSource, side: int | None) -> None:
    part = path.with_suffix(f"{_SUFFIX}.part")
    for left in path.parent.glob(f"*{_SUFFIX}.part"):  # of processes that were killed: nobody else writes here now
        left.unlink()
    sample = np.unique(np.linspace(0, len(source) - 1, _SAMPLE).astype(np.int64)).tolist()
    size = sum(_image(source, row, side)[1].nbytes for row in sample) * len(source) // len(sample)
    free = shutil.disk_usage(path.parent).free
    _LOG.info("decoded images take about %.3g GB in %s, where %.3g GB are free", size / 1e9, path.parent, free / 1e9)
    room = f"{path.parent} has no room for the decoded images, about {size:,} bytes: free some, or leave --decoded out"
    if size > free:
        raise SourceError(room)
    try:
        with part.open("wb") as file:
            index = np.zeros(len(source), _ROW)
            file.seek(_start(head, len(source)))
            with progress("decode", len(source), "images") as advance:
                for row, (shape, kept) in enumerate(_images(source, side)):
                    index[row] = (*shape, xxh3_64_intdigest(kept.data))
                    file.write(kept.data)
                    advance(1)
            file.seek(0)
            file.write(_beginning(head, index))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SourceError(room) from None
        raise


def _images(source: FullSource, side: int | None) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """`_image` of all rows in order; those of a user's own source, which may not bear threads, one by one."""
    if not isinstance(source, EncodedSource | ShardSource):
        yield from (_image(source, row, side) for row in range(len(source)))
        return
    parts = [range(len(source))[first : first + _ROWS_AT_ONCE] for first in range(0, len(source), _ROWS_AT_ONCE)]
    for images in mapped(lambda rows: [_image(source, row, side) for row in rows], parts, default_num_workers(source)):
        yield from images


def _image(source: FullSource, row: int, side: int | None) -> tuple[tuple[int, ...], np.ndarray]:
    """A row's height and width, and the bytes that are kept of it: uint8 [height * width * bytes]."""
    if not source.has_masks:
        image = np.ascontiguousarray(check_image(source, row, source.decode(row, side)))
        return image.shape[:2], image.reshape(-1)
    image, mask = source[row]
    image, mask = check_image(source, row, image), np.ascontiguousarray(mask, "<i2")
    return image.shape[:2], np.concatenate([mask.reshape(-1).view(np.uint8), image.reshape(-1)])
