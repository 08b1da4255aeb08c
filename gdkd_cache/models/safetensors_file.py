"""`.safetensors` files: a header in JSON says which tensors follow, and may hold the model's card."""

import json
import math
import struct
from collections.abc import Collection
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor

from gdkd_cache.models.described import Described, file_bytes, file_checksum
from gdkd_cache.schema import short

CARD_KEY = "gdkd_cache"
"""Of the card in the header's metadata; the only key there, as their order is not fixed and equal weights are equal
bytes."""
_HEADER_LIMIT = 2**22  # room for 30,000 tensors
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class SafetensorsFile:
    """An open file and what its header says.

    Attributes:
        described: its tensors.
        card: the card's JSON; None where it has none.

    Raises:
        ValueError: it has no such header, a larger one, or tensors that no network of ours holds.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        header = _header(file)
        metadata = header.pop("__metadata__", None)
        self.card = metadata.get(CARD_KEY) if isinstance(metadata, dict) else None
        if not (self.card is None or isinstance(self.card, str)):
            raise ValueError(f"the card in its header is {short(self.card)}")
        end = file.tell()
        self.described = {}
        for name, said in header.items():
            self.described[name], num_bytes = _described(name, said)
            end += num_bytes
        if end != file_bytes(file):  # which is read as a whole
            raise ValueError(f"its header is of a file of {short(end)} bytes")

    def read(self, names: Collection[str]) -> dict[str, Tensor]:
        self._file.seek(0)
        tensors = safetensors.torch.load(self._file.read())
        return {name: tensors[name] for name in names}

    @property
    def num_bytes(self) -> int:
        return file_bytes(self._file)

    def checksum(self) -> str:
        return file_checksum(self._file)


def _header(file: BinaryIO) -> dict[str, Any]:
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= _HEADER_LIMIT:
        raise ValueError(f"it is no safetensors file, or its header is larger than {_HEADER_LIMIT} bytes")
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    return header


def _described(name: str, said: Any) -> tuple[Described, int]:
    """A tensor, and how many bytes it takes."""
    kind, shape = (said.get("dtype"), said.get("shape")) if isinstance(said, dict) else (None, None)
    if not (isinstance(kind, str) and kind in _DTYPES):
        raise ValueError(f"{short(name)} is of type {short(kind)}; expected one of {', '.join(_DTYPES)}")
    if not (isinstance(shape, list) and all(type(extent) is int and 0 <= extent < 2**48 for extent in shape)):
        raise ValueError(f"the shape of {short(name)} is {short(shape)}")
    dtype = _DTYPES[kind]
    return Described.of(tuple(shape), dtype), math.prod(shape) * dtype.itemsize
