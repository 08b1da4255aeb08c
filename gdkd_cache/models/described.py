"""What a weights file holds, known before any of it is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Described:
    """A tensor that is not read yet.

    Attributes:
        shape: its extents.
        kind: of its numbers: `floating-point`, `complex` or `whole`, which truth values are too.
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
        """Its tensors by name, as the file itself says."""
        ...

    def read(self) -> Mapping[str, Tensor]:
        """Its tensors, which take at most twice the file's size of memory.

        Raises:
            Exception: whatever a damaged file does to its reader.
        """
        ...
