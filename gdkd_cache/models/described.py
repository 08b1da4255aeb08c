"""What a weights file holds, known before any of it is read."""

import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import torch
from torch import Tensor

OTHER = "other"
"""The kind of what a file holds under a name and is no plain tensor."""


@dataclass(frozen=True)
class Described:
    """A tensor that is not read yet.

    Attributes:
        shape: its extents.
        kind: of its numbers: `floating-point`, `complex` or `whole`, which truth values are too; else `OTHER`.
    """

    shape: tuple[int, ...]
    kind: str

    @classmethod
    def of(cls, shape: tuple[int, ...], dtype: torch.dtype) -> "Described":
        kind = "floating-point" if dtype.is_floating_point else "complex" if dtype.is_complex else "whole"
        return cls(tuple(shape), kind)


class WeightsFile(Protocol):
    """An open file of tensors."""

    @property
    def described(self) -> Mapping[str, Described]:
        """Its tensors by name, as the file itself says; in a dictionary, after that one's name and a dot."""
        ...

    @property
    def num_bytes(self) -> int:
        """Of all that it holds."""
        ...

    def read(self, names: Collection[str]) -> Mapping[str, Tensor]:
        """Those of its tensors, which take at most twice the file's size of memory.

        Raises:
            Exception: whatever a damaged file does to its reader.
        """
        ...

    def checksum(self) -> str:
        """`sha256:...` of its bytes."""
        ...


def file_bytes(file: BinaryIO) -> int:
    """The size of a file."""
    return os.fstat(file.fileno()).st_size


def file_checksum(file: BinaryIO) -> str:
    """`sha256:...` of a file's bytes."""
    file.seek(0)
    return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"  # pyright: ignore[reportArgumentType]
