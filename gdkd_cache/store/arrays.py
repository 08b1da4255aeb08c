"""Zarr v3 arrays to and from object bytes, in memory: what touches the disk is bytes that were checked.

Arrays are `[view, row, ...]`, one view a chunk, or `[row, ...]` for what all views share. Each inner chunk is
transposed (so that the compressor sees one component after the other), compressed with zstd and closed
with a crc32c; shards are closed by Zarr's own checksummed index.
"""

import asyncio
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, TransposeCodec, ZstdCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.storage import MemoryStore

from gdkd_cache.codec.base import Column
from gdkd_cache.errors import CacheError, UsageError
from gdkd_cache.limits import MOST_SHARD_ROWS, SHARD_ROWS
from gdkd_cache.schema import short

CHUNK_ROWS = 16384
_ZSTD_LEVEL = 19


def shards_fit(shard_rows: int) -> bool:
    """Whether shards may have so many rows."""
    return 1 <= shard_rows <= CHUNK_ROWS or (shard_rows % CHUNK_ROWS == 0 and 0 < shard_rows <= MOST_SHARD_ROWS)


class _BoundedZstd(ZstdCodec):
    """Zstandard that decodes into memory of the chunk's own size: a frame that holds more is refused unexpanded."""

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        size = math.prod(chunk_spec.shape) * chunk_spec.dtype.to_native_dtype().itemsize
        decoded = np.zeros(size, np.uint8)
        self._zstd_codec.decode(chunk_bytes.to_bytes(), decoded)
        return chunk_spec.prototype.buffer.from_bytes(decoded.data)

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        return await asyncio.to_thread(self._decode_sync, chunk_bytes, chunk_spec)


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
        if not shards_fit(self.shard_rows):
            raise UsageError(
                f"shard_rows is {self.shard_rows}; at most {CHUNK_ROWS}, or a multiple of it up to {MOST_SHARD_ROWS}"
            )

    def _create(self, objects: dict[str, Any]) -> zarr.Array[Any]:
        chunk_rows, shard_rows = self._chunk_rows, self._padded_shard_rows
        leading, views = ((), ()) if self.num_views is None else ((1,), (self.num_views,))
        shape = (*views, self.num_rows, *self.column.shape)
        rows_axis, ndim = len(leading), len(shape)
        column_major = [*range(rows_axis), *range(rows_axis + 1, ndim), rows_axis]
        order = [TransposeCodec(order=tuple(column_major))] if self.column.shape else []
        components = tuple(self.column.shape)
        if self.column.separate:
            components = (1, *components[1:])
        sharding = ShardingCodec(
            chunk_shape=(*leading, chunk_rows, *components),
            codecs=[*order, BytesCodec(endian="little"), _BoundedZstd(level=_ZSTD_LEVEL), Crc32cCodec()],
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

    @property
    def _chunk_rows(self) -> int:
        return min(CHUNK_ROWS, self.shard_rows, self.num_rows)

    @property
    def _padded_shard_rows(self) -> int:
        # Zarr wants whole chunks in a shard; it pads the last one with the fill value.
        return -(-min(self.shard_rows, self.num_rows) // self._chunk_rows) * self._chunk_rows

    @property
    def num_shards(self) -> int:
        """Shard objects of one view."""
        return -(-self.num_rows // self.shard_rows)

    @property
    def decoded_bytes(self) -> int:
        """What one view's shards, padding included, hold when they are decoded."""
        row = np.dtype(self.column.dtype).itemsize * math.prod(self.column.shape)
        return self.num_shards * self._padded_shard_rows * row

    def metadata(self) -> dict[str, bytes]:
        """The array's metadata object, by name."""
        objects: dict[str, Any] = {}
        self._create(objects)
        return {self._metadata_name: objects[self._metadata_name].to_bytes()}

    @property
    def _metadata_name(self) -> str:
        return f"{self.name}/zarr.json"

    def all_names(self) -> Iterator[str]:
        """Names of all objects of the array, its metadata included."""
        yield self._metadata_name
        numbers = [None] if self.num_views is None else range(self.first_view, self.first_view + self.num_views)
        for view in numbers:
            yield from self.object_names(view)

    def encode(self, data: np.ndarray, *, first_row: int = 0, view: int | None = None) -> dict[str, bytes]:
        """Encode one shard's rows: objects by name, without the metadata.

        Args:
            data: [row, ...] of the column's dtype and shape, one whole shard (or the last rows).
            first_row: a multiple of the shard's rows.
            view: the view; of no account to columns that all views share.
        """
        objects: dict[str, Any] = {}
        with zarr.config.set({"array.write_empty_chunks": True}):
            array = self._create(objects)
            rows = slice(first_row, first_row + len(data))
            array[rows if self.num_views is None or view is None else (view - self.first_view, rows)] = data
        return {name: data.to_bytes() for name, data in objects.items() if name.startswith(f"{self.name}/c/")}

    def object_names(self, view: int | None = None) -> list[str]:
        """Names of the shard objects of one view, in row order."""
        return [self.object_name(shard, view) for shard in range(self.num_shards)]

    def object_name(self, shard: int, view: int | None = None) -> str:
        """Name of a shard's object; the view is of no account to columns that all views share."""
        place = "" if self.num_views is None or view is None else f"/{view - self.first_view}"
        return f"{self.name}/c{place}/{shard}{'/0' * len(self.column.shape)}"

    def rows_of(self, shard: int) -> slice:
        """The rows that a shard holds."""
        first = shard * self.shard_rows
        return slice(first, min(first + self.shard_rows, self.num_rows))

    def decode(self, objects: Mapping[str, bytes], view: int | None = None, rows: slice = slice(None)) -> np.ndarray:
        """Decode one view's rows from its objects, all already checked.

        Args:
            objects: by name; those of the rows.
            view: which.
            rows: all, or those of one shard.

        Returns:
            [row, ...].

        The metadata is our own, from the manifest's codec and format version: a cache's `zarr.json` serves plain
        Zarr readers and cannot make this one load another codec, type or shape. Memory is bounded by the layout.

        Raises:
            CacheError: an object cannot be decoded.
        """
        make = default_buffer_prototype().buffer.from_bytes
        stored: dict[str, Any] = {name: make(data) for name, data in objects.items()}
        where = self.name if view is None else f"{self.name}, view {view}"
        try:
            array = self._create(stored)
            return np.asarray(array[rows] if view is None else array[view - self.first_view, rows])
        except (ValueError, RuntimeError, LookupError, TypeError, OverflowError, AssertionError) as error:
            raise CacheError(
                f"{where}: a shard cannot be decoded ({short(str(error))}): the cache is damaged"
            ) from None


def group_metadata() -> dict[str, bytes]:
    """The root group's metadata object, which makes a cache readable by plain Zarr."""
    objects: dict[str, Any] = {}
    zarr.create_group(MemoryStore(objects), zarr_format=3)
    return {"zarr.json": objects["zarr.json"].to_bytes()}
