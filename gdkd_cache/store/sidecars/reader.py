"""Read a cache from sidecars: the arrays of the Zarr cache, put together from every shard's records."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from gdkd_cache.errors import CacheError
from gdkd_cache.objects.folder import Folder
from gdkd_cache.objects.objects import Objects, open_objects
from gdkd_cache.objects.record import ObjectRecord
from gdkd_cache.store.arrays import ArrayLayout
from gdkd_cache.store.layout import KEYS, TABLES, decode_keys, encode_keys, encode_metadata, row_layouts
from gdkd_cache.store.manifest import MANIFEST_LIMIT, MANIFEST_NAME, Manifest
from gdkd_cache.store.reader import CacheReader
from gdkd_cache.store.sidecars.listing import (
    ROWS,
    SHARED,
    SIDECARS_NAME,
    TABLES_NAME,
    SidecarSet,
    shared_members,
    view_key,
    view_members,
)
from gdkd_cache.store.sidecars.records import decode_record, npy_header, num_bytes

if TYPE_CHECKING:
    from gdkd_cache.objects.files import Files

_READS_AT_ONCE = 8


class SidecarReader(CacheReader):
    """A cache in sidecars: the same arrays, read from the records of every shard."""

    def __init__(self, path: str | Path, *, local_copy: str | Path | None = None) -> None:
        """Open a set of sidecars: reads `sidecars.json`, nothing else.

        Args:
            path: their folder, or its URL.
            local_copy: a folder where records are kept once read, under their SHA-256.

        Raises:
            CacheError: it is damaged, or of an unknown format.
            StoreError: the object store cannot be reached, or refuses.
        """
        self.set = SidecarSet.from_bytes(open_objects(path).read(SIDECARS_NAME, MANIFEST_LIMIT))
        super().__init__(path, local_copy=local_copy)
        self._files = _open_files(self._objects)
        self._sizes: dict[str, int | None] = {}
        self._lock = Lock()
        self._last: tuple[tuple[str, int | None], np.ndarray] = (("", None), np.empty(0))

    def _read_manifest(self) -> Manifest:
        return self.set.manifest

    @property
    def digest(self) -> str:
        return self.set.digest

    def _span(self, name: str, start: int, size: int) -> bytes:
        """A part of a sidecar, whose size is what it must be."""
        what, expected = f"{self.path}/{name}", self.set.sidecars[name].file.size
        if name not in self._sizes:
            self._sizes[name] = self._files.size(name)
        found = self._sizes[name]
        if found is None:
            raise CacheError(f"{what} is missing, or a link; copy it again")
        if found != expected:
            raise CacheError(f"{what}: it has {found} bytes instead of {expected}; copy it again")
        if start + size > expected:
            raise CacheError(f"{what}: it has {expected} bytes, too few for what it should hold; copy it again")
        return self._files.span(name, start, size)

    def _record(self, name: str, view: int | None) -> dict[str, np.ndarray]:
        """The arrays of one record of one sidecar, every byte checked; None is the shared record."""
        sidecar = self.set.sidecars[name]
        members = shared_members(self.manifest.identity, sidecar.num_rows, sidecar.keys_bytes)
        start, size = 0, num_bytes(members)
        key, number = SHARED, 0
        if view is not None:
            members = view_members(self.layouts, sidecar.num_rows)
            index = self.manifest.identity.view_numbers.index(view)
            start, size = size + index * num_bytes(members), num_bytes(members)
            key, number = view_key(view), index + 1
        what = f"{self.path}/{name}"
        record = ObjectRecord(size, sidecar.records[number])
        data = self._checked(f"{what}: record {key}", record, lambda: self._span(name, start, size))
        return decode_record(what, key, members, data)

    def _records(self, view: int | None) -> list[dict[str, np.ndarray]]:
        with ThreadPoolExecutor(_READS_AT_ONCE, thread_name_prefix="read-sidecars") as executor:
            return list(executor.map(lambda name: self._record(name, view), self.set.sidecars))

    @cached_property
    def _samples(self) -> dict[str, np.ndarray]:
        """What all views share, in the order of the cache's rows, and `rows`: of each sample in turn."""
        records = self._records(None)
        shared = {name: np.concatenate([record[name] for record in records]) for name in records[0]}
        rows, num_rows = shared[ROWS], self.manifest.identity.num_rows
        if not np.array_equal(np.sort(rows), np.arange(num_rows)):
            raise CacheError(f"{self.path}: the sidecars' rows are not the cache's; copy them again")
        order = np.argsort(rows)
        keys = decode_keys(shared[KEYS], num_rows)
        columns = {name: shared[name][order] for name in shared.keys() - {ROWS, KEYS}}
        return columns | {ROWS: rows, KEYS: encode_keys([keys[sample] for sample in order.tolist()])}

    def _tables(self, layout: ArrayLayout) -> np.ndarray:
        header = npy_header("uint8", (layout.num_rows,))
        record = self.set.tables
        if record is None or record.size != len(header) + layout.num_rows:
            raise CacheError(f"{self.path}: {SIDECARS_NAME} lacks the codec's tables; copy it again")
        read = partial(self._objects.read, TABLES_NAME, record.size)
        data = self._checked(f"{self.path}/{TABLES_NAME}", record, read)
        if data[: len(header)] != header:
            raise CacheError(f"{self.path}/{TABLES_NAME} is not the array that the manifest says; copy it again")
        return np.frombuffer(data, np.uint8, offset=len(header)).copy()  # writable, as torch wants it

    def _arrays(self, layouts: Sequence[ArrayLayout], view: int | None = None) -> dict[str, np.ndarray]:
        if view is None:
            return {
                layout.name: self._tables(layout) if layout.name == TABLES else self._samples[layout.name]
                for layout in layouts
            }
        records, first = self._records(view), 0
        arrays = {
            layout.name: np.empty((layout.num_rows, *layout.column.shape), layout.column.dtype) for layout in layouts
        }
        for record in records:
            num_rows = len(next(iter(record.values())))
            rows = self._samples[ROWS][first : first + num_rows]
            for name, array in arrays.items():
                array[rows] = record[name]
            first += num_rows
        return arrays

    def read(self, name: str) -> bytes:
        """An object of the Zarr cache with the same content, encoded again.

        Raises:
            CacheError: it is not listed, a sidecar is missing or damaged, or another version of the compressor
                encodes it otherwise.
        """
        record = self.manifest.objects.get(name)
        if record is None:
            raise CacheError(f"{self.path}: the manifest does not list {name}; copy the sidecars again")
        data = self._encoded(name)
        if data is None or ObjectRecord.of(data) != record:
            made = (part.software or {} for part in self.manifest.identity.parts)
            zarr = " or ".join(sorted({software.get("zarr", "of the build") for software in made}))
            raise CacheError(
                f"{self.path}: {name}, made from the sidecars, is not what the manifest lists: "
                f"they are damaged, or zarr {zarr} and its zstd are needed to encode it as in the build"
            )
        return data

    def _encoded(self, name: str) -> bytes | None:
        shared = row_layouts(self.manifest.identity)
        if name in (metadata := encode_metadata(self.manifest.identity, self.codec)):
            return metadata[name]
        layout = (shared | self.layouts).get(name.split("/")[0])
        if layout is None:
            return None
        numbers = [None] if layout.name in shared else self.manifest.identity.view_numbers
        found = [view for view in numbers if name in layout.object_names(view)]
        if not found:
            return None
        view = found[0]
        first = layout.object_names(view).index(name) * layout.shard_rows
        with self._lock:  # all objects of one column and view come in turn, so it is read once
            if self._last[0] != (layout.name, view):
                array = self._array(layout) if view is None else self.column(layout.name, view)
                self._last = (layout.name, view), array
            rows = self._last[1][first : first + layout.shard_rows]
        return layout.encode(rows, first_row=first, view=view)[name]

    def problems(self) -> Iterator[tuple[str, str | None]]:
        """Encode every object of the Zarr cache again and compare it with the manifest, in name order."""
        for name in sorted(self.manifest.objects):
            yield name, self._problem(name)

    def _problem(self, name: str) -> str | None:
        try:
            self.read(name)
        except CacheError as error:
            return str(error)
        return None


class _LocalFiles:
    """What `Files` is of a URL, of a folder: files of any name, none of them a link."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def size(self, name: str) -> int | None:
        path = self._folder / name
        return None if path.is_symlink() or not path.is_file() else path.stat().st_size

    def span(self, name: str, start: int, size: int) -> bytes:
        with (self._folder / name).open("rb") as file:
            file.seek(start)
            return file.read(size)


def _open_files(objects: Objects) -> "_LocalFiles | Files":
    if isinstance(objects, Folder):
        return _LocalFiles(objects.root)
    from gdkd_cache.objects.files import Files

    return Files(objects.location)


def holds_sidecars(path: str | Path) -> bool:
    """Whether a place, a folder or a URL, holds sidecars, and no Zarr cache.

    Raises:
        StoreError: the object store cannot be reached, or refuses.
    """
    objects = open_objects(path)
    return objects.size(SIDECARS_NAME) is not None and objects.size(MANIFEST_NAME) is None
