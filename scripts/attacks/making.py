"""What several families make: shards, files that are mostly holes, arrays that lie, manifests with a digest."""

import hashlib
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from gdkd_cache.store.manifest import canonical_json


def write_shard(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    """A tar of files."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def read_shard(path: Path) -> list[tuple[str, bytes]]:
    """The files of a tar."""
    with tarfile.open(path) as tar:
        files = [(member.name, tar.extractfile(member)) for member in tar]
        return [(name, file.read()) for name, file in files if file is not None]


def write_holes(path: Path, start: bytes = b"", size: int = 3 * 2**30) -> None:
    """A file that is one hole behind its first bytes."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)


def write_png(path: Path, side: int) -> None:
    """A black picture of so many pixels a side, in few bytes."""
    deflate, row = zlib.compressobj(9), bytes(1 + 3 * side)
    rows = b"".join(deflate.compress(row) for _ in range(side)) + deflate.flush()
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        _chunk(file, b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        _chunk(file, b"IDAT", rows)
        _chunk(file, b"IEND", b"")


def _chunk(file: BinaryIO, kind: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))


def npy(descr: str, shape: object, data: bytes, *, fortran: bool = False) -> bytes:
    """A .npy with a header of one's own."""
    header = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def forge(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edit the JSON of a cache, and give it a digest that is its own again."""
    stored = json.loads(path.read_bytes())
    change(stored)
    stored.pop("digest", None)
    stored["digest"] = "sha256:" + hashlib.sha256(_canonical(stored)).hexdigest()
    path.write_bytes(_canonical(stored))


def _canonical(stored: dict[str, Any]) -> bytes:
    try:
        return canonical_json(stored)
    except (ValueError, UnicodeError):  # what no writer of ours would write
        return json.dumps(stored, sort_keys=True, separators=(",", ":")).encode()


def forge_object(cache: Path, name: str, data: bytes) -> None:
    """Replace an object of a cache, and the manifest's record of it."""
    (cache / name).write_bytes(data)
    record = [len(data), hashlib.sha256(data).hexdigest()]
    forge(cache / "manifest.json", lambda stored: stored["objects"].update({name: record}))
