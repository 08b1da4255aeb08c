"""One record of a sidecar: tar members, each a `.npy` array whose dtype and shape are known beforehand.

The bytes of every header follow from that. A reader parses none: it compares them with what they must be.
"""

import math
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gdkd_cache.errors import CacheError

_BLOCK = 512
_NPY_HEADER = 128
END = bytes(2 * _BLOCK)
"""What ends a tar file."""

Members = dict[str, tuple[str, tuple[int, ...]]]
"""Dtype and shape of each member of a record, by name."""


def _little_endian(dtype: str) -> np.dtype[Any]:
    return np.dtype(dtype).newbyteorder("<")


def npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Version 1.0 of NumPy's format, always 128 bytes: NumPy's own writer pads differently from version to version."""
    text = f"{{'descr': '{_little_endian(dtype).str}', 'fortran_order': False, 'shape': {shape}, }}"
    start = b"\x93NUMPY\x01\x00" + (_NPY_HEADER - 10).to_bytes(2, "little")
    return start + text.ljust(_NPY_HEADER - len(start) - 1).encode() + b"\n"


def _array_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod((_little_endian(dtype).itemsize, *shape))


def _headers(key: str, members: Members) -> Iterator[tuple[str, bytes, int, int]]:
    """Each member's name, header (of the tar file, then of the array), bytes of data and of padding."""
    for name, (dtype, shape) in members.items():
        size = _array_bytes(dtype, shape)
        info = tarfile.TarInfo(f"{key}.{name}.npy")
        info.size, info.mtime = _NPY_HEADER + size, 0
        yield name, info.tobuf(tarfile.GNU_FORMAT) + npy_header(dtype, shape), size, -info.size % _BLOCK


def num_bytes(members: Members) -> int:
    """How long a record is."""
    return sum(len(header) + size + padding for _, header, size, padding in _headers("0", members))


def encode_record(key: str, members: Members, arrays: Mapping[str, np.ndarray]) -> bytes:
    """One record as tar members: arrays of the members' dtypes and shapes, by name."""
    parts: list[bytes] = []
    for name, header, _, padding in _headers(key, members):
        array = np.ascontiguousarray(arrays[name], _little_endian(members[name][0]))
        assert array.shape == members[name][1]
        parts += [header, array.tobytes(), bytes(padding)]
    return b"".join(parts)


def decode_record(what: str, key: str, members: Members, data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a record, from as many bytes as it has by its members.

    Raises:
        CacheError: a header is not what it must be.
    """
    arrays: dict[str, np.ndarray] = {}
    start = 0
    for name, header, size, padding in _headers(key, members):
        if data[start : start + len(header)] != header:
            raise CacheError(f"{what}: {key}.{name}.npy is not the array that the manifest says; copy it again")
        start += len(header)
        dtype, shape = members[name]
        arrays[name] = np.frombuffer(data[start : start + size], _little_endian(dtype)).reshape(shape)
        start += size + padding
    return arrays
