"""Small files that say, or unpack to, a lot: prints what is said of each, and by how many MB the process grew.

A script of its own, so that its memory is its own.
"""

import gzip
import io
import json
import os
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from gdkd_cache import open_source
from gdkd_cache.building.arrays import read_logits
from gdkd_cache.data.images.decoding import decode_image
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.errors import GdkdCacheError

_GB = 2**30
_END = bytes(1024)


def _peak() -> int:
    """The most MB that this process has had."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def _holes(name: str, data: bytes, size: int) -> Path:
    """A file that begins with the data and is a hole from there on."""
    Path(name).write_bytes(data)
    os.truncate(name, size)
    return Path(name)


def _zeros(name: str, start: bytes) -> Path:
    """A gzip file of the data and 256 MB of zeros."""
    with gzip.open(name, "wb", compresslevel=1) as file:
        file.write(start)
        for _ in range(256):
            file.write(bytes(2**20))
    return Path(name)


def _header(name: str, size: int, kind: bytes = b"0") -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def _sample(label: bytes) -> bytes:
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, "PNG")
    parts = [("a.png", png.getvalue()), ("a.cls", label)]
    return b"".join(_header(name, len(data)) + data + bytes(-len(data) % 512) for name, data in parts)


def _png() -> bytes:
    """Of 13,300 x 13,300 pixels, the first half of them there."""
    made = zlib.compressobj(1)
    rows = b"".join(made.compress(bytes(2**20)) for _ in range(256)) + made.flush()
    parts = b"IHDR" + struct.pack(">IIBBBBB", 13300, 13300, 8, 2, 0, 0, 0), b"IDAT" + rows
    chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _npz(large: str, rows: int) -> Path:
    """Logits, and 256 MB of zeros under a name."""
    with zipfile.ZipFile("a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        if large != "teacher":
            with archive.open("teacher.npy", "w") as file:
                np.lib.format.write_array(file, np.zeros((1, rows, 9), np.float32))
        with archive.open(f"{large}.npy", "w") as file:
            shape = {"descr": "<f4", "fortran_order": False, "shape": (2**26 // rows, rows, 1)}
            np.lib.format.write_array_header_1_0(file, shape)
            for _ in range(256):
                file.write(bytes(2**20))
    return Path("a.npz")


def _logits() -> Path:
    np.save("b.npy", np.zeros((1, 16, 9), np.float32))
    return Path("b.npy")


def _open(shard: Path) -> object:
    return open_source(f"wds:{shard}")


_NPY = b"\x93NUMPY\x02\0\xff\xff\xff\xff"
_WEBP = b"RIFF\xff\xff\xff\xffWEBPVP8 "
_CASES = {
    "a label of 60,000,000": lambda: _open(_holes("a.tar", _sample(b"60000000") + _END, 20480)),
    "a PNG of 13,300 squared": lambda: decode_image("a", _png()),
    "a WebP of 8 GB of holes": lambda: decode_image("a", _holes("a.webp", _WEBP, 8 * _GB)),
    "a long name of 3 GB of holes": lambda: _open(_holes("a.tar", _header("a", 3 * _GB, b"L"), 4 * _GB)),
    "a pax header of 256 MB of zeros": lambda: _open(_zeros("a.tar", _header("a", 2**28, b"x"))),
    "an image of 256 MB of zeros": lambda: _open(_zeros("a.tar", _header("a.png", 2**28))),
    "an image of 8 GB of holes": lambda: _open(_holes("a.tar", _header("a.png", 8 * _GB), 9 * _GB)),
    "logits of 256 MB of zeros": lambda: read_logits(_npz("teacher", 2**18), None, None),
    "an unused array of 256 MB": lambda: read_logits(_npz("others", 16), None, None),
    "an array's header of 4 GB of holes": lambda: read_logits(_holes("a.npy", _NPY, 8 * _GB), None, None),
    "keys of 8 GB of holes": lambda: read_logits(_logits(), None, _holes("keys", b"a\n", 8 * _GB)),
    "a recipe of 8 GB of holes": lambda: open_recipe(str(_holes("a.toml", b"#", 8 * _GB)), 8, 8),
    "classes of 8 GB of holes": lambda: (
        _holes("classes.txt", b"a\n", 8 * _GB),
        _open(_holes("a.tar", _sample(b"1") + _END, 20480)),
    ),
}


def main() -> None:
    for name, case in _CASES.items():
        before = _peak()
        try:
            case()
            said = "read"
        except GdkdCacheError as error:
            said = str(error)
        print(json.dumps([name, said, _peak() - before]), flush=True)


if __name__ == "__main__":
    main()
