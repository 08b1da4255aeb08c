"""Files of `torch.save` that hold plain tensors: zip archives, and what torch wrote before version 1.6.

`torch.load` allocates what a few bytes claim, even with `weights_only=True`, and refuses a checkpoint for what lies
beside its tensors. Here nothing is imported or called, and only the tensors that are asked for are read.
"""

import io
import math
import struct
import zipfile
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gdkd_cache.models.described import OTHER, Described, file_bytes, file_checksum
from gdkd_cache.models.pickled import Call, Name, read_pickle
from gdkd_cache.schema import short

_LIMIT = 2**22  # of a pickle or a zip archive's directory: room for 10,000 tensors
_DEEPEST = 6  # dictionaries in dictionaries
_MOST_TEXT, _NAME_BYTES = 2**24, 64  # of all names together, and beside each: dictionaries may hold each other
_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Storage(NamedTuple):
    """Numbers in a row, of which tensors are made."""

    dtype: torch.dtype
    key: str
    length: int

    @property
    def num_bytes(self) -> int:
        return self.length * self.dtype.itemsize


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TorchFile:
    """An open file and what its pickle says.

    Attributes:
        described: its tensors, and what else it holds under names.

    Raises:
        ValueError: it is no such file, or holds no dictionary of plain tensors.
        Exception: whatever else a damaged file does to its reader.
    """

    def __init__(self, file: io.BufferedReader) -> None:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        stored, self._numbers = _open_zip(file) if is_zip else _open_legacy(file)
        self._file = file
        held = _held(stored)
        self._tensors = {name: tensor for name, tensor in held.items() if isinstance(tensor, _Tensor)}
        self.described = {
            name: Described.of(it.shape, it.storage.dtype) if isinstance(it, _Tensor) else Described((), OTHER)
            for name, it in held.items()
        }
        if not self._tensors:
            is_object = any(isinstance(it, Call | Name) for it in (stored, *held.values()))
            found = "an object, not a state dict of tensors; save the network's state_dict()"
            raise ValueError(f"it holds {found if is_object else 'no state dict of tensors'}")

    def read(self, names: Collection[str]) -> dict[str, Tensor]:
        tensors = {name: self._tensors[name] for name in names}
        storages = {tensor.storage for tensor in tensors.values()}
        wanted = sum(math.prod(tensor.shape) * tensor.storage.dtype.itemsize for tensor in tensors.values())
        if sum(storage.num_bytes for storage in storages) > 4 * wanted + 2**20:
            raise ValueError("its tensors are small parts of larger ones; save clones of them")
        numbers = {storage: _from_bytes(storage, self._numbers(storage)) for storage in storages}
        return {
            name: numbers[tensor.storage].as_strided(tensor.shape, tensor.strides, tensor.offset)
            for name, tensor in tensors.items()
        }

    @property
    def num_bytes(self) -> int:
        return file_bytes(self._file)

    def checksum(self) -> str:
        return file_checksum(self._file)


_Numbers = Callable[[_Storage], bytearray]


def _held(stored: object) -> dict[str, object]:
    """What dictionaries in dictionaries hold, by the names that lead there, joined by dots."""
    held: dict[str, object] = {}
    room = _MOST_TEXT

    def add(start: str, values: object, depth: int) -> None:
        nonlocal room
        for key, value in values.items() if isinstance(values, dict) else ():
            if not isinstance(key, str):  # of an optimizer's state: the numbers of parameters
                continue
            name = start + key
            room -= len(name) + _NAME_BYTES
            if room < 0:
                raise ValueError("its dictionaries hold too much, or each other")
            if not isinstance(value, dict):
                if name in held:
                    raise ValueError(f"it holds two things named {short(name)}")
                held[name] = value
            elif depth:
                add(f"{name}.", value, depth - 1)

    add("", stored, _DEEPEST)
    return held


def _call(call: Call) -> object:
    """What the calls that torch and Python write for tensors, parameters and ordered dictionaries stand for."""
    arguments: Any = call.arguments
    match call.function:
        case Name("collections", "OrderedDict" | "defaultdict"):
            return {}
        case Name("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor"):
            storage, offset, shape, strides = arguments[:4]
            return _tensor(storage, offset, tuple(shape), tuple(strides)) if isinstance(storage, _Storage) else call
        case Name("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state"):
            return arguments[0]
        case Name("torch._tensor", "_rebuild_from_type_v2"):  # of a tensor that somebody has given attributes
            return _call(Call(arguments[0], arguments[2]))
        case _:
            return call


def _tensor(storage: _Storage, offset: Any, shape: tuple[Any, ...], strides: tuple[Any, ...]) -> _Tensor:
    """A tensor whose numbers lie inside its storage."""
    numbers = (offset, *shape, *strides)
    if not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
        raise ValueError("a tensor is not made of plain numbers")
    last = offset + sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= storage.length:
        raise ValueError(f"a tensor of {list(shape)} does not fit into its {storage.length} numbers")
    return _Tensor(storage, offset, shape, strides)


def _storage(stored: Any, storages: dict[str, _Storage]) -> _Storage | Name:
    """What a persistent id stands for, the same for each mention; the name of a kind of numbers that is not plain."""
    tag, kind, key, _, length, *view = stored
    if tag != "storage" or not isinstance(kind, Name) or any(view):
        raise ValueError("it holds something else than plain tensors, or tensors that share what they are made of")
    if kind.name not in _DTYPES:
        return kind
    if type(length) is not int or length < 0:
        raise ValueError(f"a tensor has {short(length)} numbers")
    storage = _Storage(_DTYPES[kind.name], str(key), length)
    if storages.setdefault(storage.key, storage) != storage:
        raise ValueError(f"tensor data {short(storage.key)} is said to be of two kinds")
    return storage


def _from_bytes(storage: _Storage, data: bytearray) -> Tensor:
    return torch.frombuffer(data, dtype=storage.dtype) if data else torch.empty(0, dtype=storage.dtype)


class _Pieces:
    """A file that gives no more than the limit at once: so large a zip archive's directory may be, whatever it says."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        return self._file.read(_LIMIT if size < 0 else min(size, _LIMIT))


def _open_zip(file: io.BufferedReader) -> tuple[object, _Numbers]:
    size = file_bytes(file)
    archive = zipfile.ZipFile(_Pieces(file))  # pyright: ignore[reportArgumentType]  (it needs no more)
    members = {member.filename: member for member in archive.infolist()}
    if any(name.endswith("/constants.pkl") for name in members):
        raise ValueError("it is a TorchScript program, not a state dict of tensors; save the network's state_dict()")
    # So that none is unpacked to more than the file holds, and none lies in another.
    if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
        raise ValueError("it is compressed, as torch writes no file")
    if sum(member.file_size for member in archive.infolist()) > size:
        raise ValueError("its members are larger than the file")
    root = next((name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")), None)
    if root is None:
        raise ValueError("it is no file of torch: it holds no data.pkl")

    def content(name: str, limit: int) -> bytearray:
        if members[name].file_size > limit:
            raise ValueError(f"its {name} is larger than {limit} bytes")
        data = bytearray()
        with archive.open(members[name]) as member:
            while piece := member.read(2**20):
                data += piece
        return data

    if f"{root}byteorder" in members and content(f"{root}byteorder", 64) != b"little":
        raise ValueError("it was written on a machine with another order of bytes")

    def numbers(storage: _Storage) -> bytearray:
        data = content(f"{root}data/{storage.key}", storage.num_bytes)
        if len(data) < storage.num_bytes:
            raise ValueError(f"it ends within tensor data {storage.key}")
        return data

    storages: dict[str, _Storage] = {}
    pickled = io.BytesIO(content(f"{root}data.pkl", _LIMIT))
    return read_pickle(pickled, _call, lambda stored: _storage(stored, storages)), numbers


def _open_legacy(file: io.BufferedReader) -> tuple[object, _Numbers]:
    """Five pickles (a magic number, a version, the machine, the object, the storages' keys), then the storages."""
    size = file_bytes(file)
    start = io.BytesIO(file.read(_LIMIT))
    storages: dict[str, _Storage] = {}

    def read() -> Any:
        return read_pickle(start, _call, lambda stored: _storage(stored, storages))

    try:
        magic = read()
    except Exception:  # whatever comes of reading any other file as a pickle
        magic = None
    if magic != _MAGIC:
        raise ValueError("it is no file of torch.save")
    _, machine, stored, keys = (read() for _ in range(4))
    if not machine["little_endian"]:
        raise ValueError("it was written on a machine with another order of bytes")
    places: dict[_Storage, int] = {}
    end = start.tell()
    for key in keys:
        storage = storages.get(key)
        if storage is None:
            raise ValueError(f"it holds tensors of other types than {', '.join(_DTYPES)}")
        file.seek(end)
        if struct.unpack("<q", file.read(8)) != (storage.length,):
            raise ValueError(f"tensor data {short(key)} is not as long as it says")
        places[storage] = end + 8
        end += 8 + storage.num_bytes
    if end > size:
        raise ValueError("it ends within its tensors")

    def numbers(storage: _Storage) -> bytearray:
        data = bytearray(storage.num_bytes)
        file.seek(places[storage])
        file.readinto(data)
        return data

    return stored, numbers
