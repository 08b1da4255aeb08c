"""A source whose images stay in larger files on disk, such as tar shards."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gdkd_cache.data.images.decoding import decode_image
from gdkd_cache.data.masks import EncodedMasks
from gdkd_cache.data.source import FullSource
from gdkd_cache.errors import SourceError


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardSource(FullSource):
    """Images in shards: memory holds where each of them lies, and no pixels.

    Attributes:
        shards: the files, in which each image lies in one piece.
        shard_starts: int64 [shard + 1], the first row of each shard, then the number of rows.
        offsets, sizes: int64 [row], where the image's bytes lie in its shard.
    """

    shards: Sequence[Path]
    shard_starts: np.ndarray = field()  # required here
    offsets: np.ndarray
    sizes: np.ndarray

    @property
    def scales(self) -> bool:
        return True

    def shard_of(self, row: int) -> int:
        """In which of the shards a row lies."""
        return int(np.searchsorted(self.shard_starts, row, side="right")) - 1

    def decode(self, row: int, side: int | None) -> np.ndarray:
        """The row's image, as `decode_image`.

        Raises:
            SourceError: its shard cannot be read, or the image not be decoded.
        """
        shard = self.shards[self.shard_of(row)]
        return decode_image(self.keys[row], _member(shard, int(self.offsets[row]), int(self.sizes[row])), side)

    def _taken(self, rows: np.ndarray) -> dict[str, Any]:
        return super()._taken(rows) | {"offsets": self.offsets[rows], "sizes": self.sizes[rows]}


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardMasks(EncodedMasks):
    """The masks of images in shards, which lie there too.

    Attributes:
        shards: the files.
        numbers: int64 [row], in which of the shards a row's mask lies.
        offsets, sizes: int64 [row], where it lies there.
    """

    shards: Sequence[Path]
    numbers: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray

    def file(self, row: int) -> bytes:
        return _member(self.shards[self.numbers[row]], int(self.offsets[row]), int(self.sizes[row]))

    def _taken(self, rows: np.ndarray) -> dict[str, Any]:
        return {name: getattr(self, name)[rows] for name in ("numbers", "offsets", "sizes")}


def _member(shard: Path, offset: int, size: int) -> bytes:
    """What lies in a shard."""
    try:
        with shard.open("rb", buffering=0) as file:
            file.seek(offset)
            return file.read(size)
    except OSError as error:
        raise SourceError(f"shard {shard} cannot be read: {error.strerror}") from None
