"""Zarr v3 arrays to and from object bytes, in memory: what touches the disk is bytes that were checked.

Arrays are `[view, row, ...]`, one view a chunk, or `[row, ...]` for what all views share. Each inner chunk is
transposed (so that the compressor sees one component after the other), compressed with zstd and closed
with a crc32c; shards are closed by Zarr's own checksummed index.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, TransposeCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from gdkd_cache.codec import Column
from gdkd_cache.errors import CacheError, UsageError

SHARD_ROWS = 131072
CHUNK_ROWS = 16384
_ZSTD_LEVEL = 19


@dataclass(frozen=True, kw_only=True)
class ArrayLayout:
    """The Zarr array of one column.

    Attributes:
        name: array name, one path segment.
        column: element type and shape of one row's entry.
        num_rows: rows in the cache.
        num_views: views, or None when all views share the column.
        shard_rows: rows a shard.
        first_view: the number of the view at index 0; all methods take view numbers.
    """

    name: str
    column: Column
    num_rows: int
    num_views: int | None
    shard_rows: int = SHARD_ROWS
    first_view: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.shard_rows <= CHUNK_ROWS or self.shard_rows % CHUNK_ROWS == 0):
            raise UsageError(f"shard_rows is {self.shard_rows}; at most {CHUNK_ROWS}, or a multiple of it")

    def _create(self, objects: dict[str, Any]) -> zarr.Array[Any]:
        shard_rows = min(self.shard_rows, max(self.num_rows, 1))
        chunk_rows = min(CHUNK_ROWS, shard_rows)
        # Zarr wants whole chunks in a shard; it pads the last one with the fill value.
        shard_rows = -(-shard_rows // chunk_rows) * chunk_rows
        leading, views = ((), ()) if self.num_views is None else ((1,), (self.num_views,))
        shape = (*views, self.num_rows, *self.column.shape)
        rows_axis, ndim = len(leading), len(shape)
        column_major = [*range(rows_axis), *range(rows_axis + 1, ndim), rows_axis]
        order = [TransposeCodec(order=tuple(column_major))] if self.column.shape else []
        components = tuple(1 if self.column.separate else extent for extent in self.column.shape)
        sharding = ShardingCodec(
            chunk_shape=(*leading, chunk_rows, *components),
            codecs=[*order, BytesCodec(endian="little"), ZstdCodec(level=_ZSTD_LEVEL), Crc32cCodec()],
        )
        return zarr.create_array(
            MemoryStore(objects),
            name=self.name,
            shape=shape,
            dtype=self.column.dtype,
            chunks=(*leading, shard_rows, *self.column.shape),
            serializer=sharding,
            compressors=None,
            filters=None,
            fill_value=self.column.fill,
        )

    def metadata(self) -> dict[str, bytes]:
        """The array's metadata object, by name."""
        objects: dict[str, Any] = {}
        self._create(objects)
        return {self._metadata_name: objects[self._metadata_name].to_bytes()}

    @property
    def _metadata_name(self) -> str:
        return f"{self.name}/zarr.json"

    def encode(self, data: np.ndarray, *, first_row: int = 0, view: int | None = None) -> dict[str, bytes]:
        """Encode one shard's rows: objects by name, without the metadata.

        Args:
            data: [row, ...] of the column's dtype and shape, one whole shard (or the last rows).
            first_row: a multiple of the shard's rows.
            view: the view, for columns that have views.
        """
        objects: dict[str, Any] = {}
        with zarr.config.set({"array.write_empty_chunks": True}):
            array = self._create(objects)
            rows = slice(first_row, first_row + len(data))
            array[rows if view is None else (view - self.first_view, rows)] = data
        return {name: data.to_bytes() for name, data in objects.items() if name.startswith(f"{self.name}/c/")}

    def object_names(self, view: int | None = None) -> list[str]:
        """Names of the shard objects of one view, in row order."""
        prefix = f"{self.name}/c" if view is None else f"{self.name}/c/{view - self.first_view}"
        suffix = "/0" * len(self.column.shape)
        return [f"{prefix}/{shard}{suffix}" for shard in range(-(-self.num_rows // self.shard_rows))]

    def decode(self, objects: Mapping[str, bytes], view: int | None = None) -> np.ndarray:
        """Decode one view's rows from its objects, all already checked.

        Returns:
            [row, ...].

        The metadata is our own, from the manifest's codec and format version: a cache's `zarr.json` serves plain
        Zarr readers and cannot make this one load another codec, type or shape.

        Raises:
            CacheError: an object cannot be decoded.
        """
        make = default_buffer_prototype().buffer.from_bytes
        store = MemoryStore({name: make(data) for name, data in (self.metadata() | dict(objects)).items()})
        try:
            array = zarr.open_array(store, path=self.name, mode="r", zarr_format=3)
            return np.asarray(array[...] if view is None else array[view - self.first_view])
        except (ValueError, RuntimeError, KeyError) as error:
            raise CacheError(f"{self.name}: a shard of view {view} cannot be decoded: {error}") from None


def group_metadata() -> dict[str, bytes]:
    """The root group's metadata object, which makes a cache readable by plain Zarr."""
    objects: dict[str, Any] = {}
    zarr.create_group(MemoryStore(objects), zarr_format=3)
    return {"zarr.json": objects["zarr.json"].to_bytes()}
