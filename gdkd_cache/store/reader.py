"""Read a finished cache: the manifest alone says what exists, and no byte is used before it was checked."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np

from gdkd_cache.codec.base import Codec
from gdkd_cache.codec.stored import codec_from_json
from gdkd_cache.errors import CacheError
from gdkd_cache.limits import NO_LABEL
from gdkd_cache.objects.folder import Folder
from gdkd_cache.objects.objects import open_objects
from gdkd_cache.objects.record import ObjectRecord
from gdkd_cache.schema import to_json
from gdkd_cache.store.arrays import ArrayLayout
from gdkd_cache.store.belongings import is_claim
from gdkd_cache.store.layout import (
    IMAGE_SIZE,
    KEYS,
    LABELS,
    SOURCE_CHECK,
    SOURCE_PROBE,
    check_claims,
    check_layouts,
    check_objects,
    decode_keys,
    reference_layouts,
    row_layouts,
    tables_layout,
    view_layouts,
)
from gdkd_cache.store.manifest import BUILD_NAME, LEDGER_NAME, MANIFEST_LIMIT, MANIFEST_NAME, Manifest

_READS_AT_ONCE = 8
Made = TypeVar("Made")


class CacheReader:
    """Read-only access to a cache.

    Attributes:
        path: where it is, as messages tell it: a folder, or a URL without credentials.
        manifest: the checked manifest.
    """

    def __init__(self, path: str | Path, *, local_copy: str | Path | None = None) -> None:
        """Open a cache: reads and checks the manifest, nothing else.

        Args:
            path: the cache folder, or the URL of an object store or web server.
            local_copy: a folder where objects are kept once read, under their SHA-256.

        Raises:
            CacheError: no cache there, an unfinished build or copy, or a damaged or unknown manifest.
            StoreError: the object store cannot be reached, or refuses.
        """
        self._objects = open_objects(path)
        self._copy = None if local_copy is None else Folder(Path(local_copy))
        self.path = self._objects.location
        self._making, self._made = Lock(), dict[str, Any]()
        self.manifest = self._read_manifest()
        check_claims(self.manifest)

    def _read_manifest(self) -> Manifest:
        if self._objects.size(MANIFEST_NAME) is None:
            if self._objects.size(BUILD_NAME) is not None:
                raise CacheError(f"{self.path} is an unfinished build or copy; run its command again to resume it")
            raise CacheError(f"{self.path} is no cache: {self._lack()}; make one with: gdkd-cache build")
        return Manifest.from_bytes(self._objects.read(MANIFEST_NAME, MANIFEST_LIMIT))

    def _lack(self) -> str:
        """Why nothing can be read as a manifest."""
        if isinstance(self._objects, Folder):
            root, manifest = self._objects.root, self._objects.root / MANIFEST_NAME
            if root.exists() and not root.is_dir():
                return f"it is {'a file' if root.is_file() else 'a pipe, a socket or a device'}, not a folder"
            if manifest.exists():
                return f"its {MANIFEST_NAME} is a {'folder' if manifest.is_dir() else 'pipe, a socket or a device'}"
        return f"it has no {MANIFEST_NAME}"

    @property
    def digest(self) -> str:
        """What a user pins: a digest over everything that this reader trusts."""
        return self.manifest.digest

    @cached_property
    def codec(self) -> Codec:
        """The codec that the manifest names, with its tables."""
        layout = tables_layout(self.manifest)
        return codec_from_json(to_json(self.manifest.identity.codec), None if layout is None else self._array(layout))

    @cached_property
    def layouts(self) -> dict[str, ArrayLayout]:
        """The arrays `[view, row, ...]` by column name, once the manifest's objects are those of all arrays."""
        layouts = view_layouts(self.manifest.identity, self.codec)
        check_objects(self.manifest, self.codec)
        return layouts

    @cached_property
    def reference_layouts(self) -> dict[str, ArrayLayout]:
        """The arrays of views before those of the cache that predict them, by column name; none where all are here."""
        _ = self.layouts  # whose check bounds what is decoded of these
        return reference_layouts(self.manifest.identity, self.codec)

    def record(self, name: str) -> ObjectRecord:
        """What the manifest says of an object.

        Raises:
            CacheError: it does not list the object.
        """
        record = self.manifest.objects.get(name)
        if record is None:
            raise CacheError(f"{self.path}: the manifest does not list {name}; copy the cache again")
        return record

    def read(self, name: str) -> bytes:
        """An object that the manifest lists, every byte checked.

        Raises:
            CacheError: it is not listed, missing or damaged.
        """
        record = self.record(name)
        return self._checked(f"{self.path}/{name}", record, lambda: self._objects.read(name, record.size))

    def _checked(self, what: str, record: ObjectRecord, read: Callable[[], bytes]) -> bytes:
        """The bytes that a record is of: from the local copy, or as `read` gives them, which are then kept there."""
        kept = f"{record.sha256[:2]}/{record.sha256}"
        if self._copy is not None and self._copy.size(kept) == record.size:
            data = self._copy.read(kept, record.size)
            if ObjectRecord.of(data) == record:
                return data
        data = read()
        record.check(what, ObjectRecord.of(data))
        if self._copy is not None:
            self._copy.write(kept, data)
        return data

    def _arrays(self, layouts: Sequence[ArrayLayout], view: int | None = None) -> dict[str, np.ndarray]:
        """Arrays by name; their objects are read at once, as an object store answers each only after a while."""
        names = [name for layout in layouts for name in layout.object_names(view)]
        with ThreadPoolExecutor(_READS_AT_ONCE, thread_name_prefix="read-objects") as executor:
            objects = dict(zip(names, executor.map(self.read, names), strict=True))
        return {
            layout.name: layout.decode({name: objects[name] for name in layout.object_names(view)}, view)
            for layout in layouts
        }

    def _array(self, layout: ArrayLayout) -> np.ndarray:
        return self._arrays([layout])[layout.name]

    def column(self, name: str, view: int) -> np.ndarray:
        """One column of one view, every byte checked: [row, ...].

        Raises:
            CacheError: an object is missing or damaged.
        """
        return self.columns([name], view)[name]

    def columns(self, names: Iterable[str], view: int) -> dict[str, np.ndarray]:
        """Several columns of one view by name, as `column` gives them."""
        return self._arrays([self.layouts[name] for name in names], view)

    def reference_columns(self, view: int) -> dict[str, np.ndarray]:
        """The codec's columns of a view that predicts others, one here or before, as `columns` gives them.

        Raises:
            CacheError: an object is missing or damaged.
        """
        names = self.codec.columns()
        if view in self.manifest.identity.view_numbers:
            return self.columns(names, view)
        layouts = self.reference_layouts
        arrays = self._arrays([layouts[name] for name in names], view)
        return {name: arrays[layouts[name].name] for name in names}

    def shard_columns(self, view: int, shard: int) -> dict[str, np.ndarray]:
        """The codec's columns of one shard of such a view.

        Raises:
            CacheError: an object is missing or damaged.
        """
        layouts = self.layouts if view in self.manifest.identity.view_numbers else self.reference_layouts
        columns = {}
        for column in self.codec.columns():
            layout = layouts[column]
            name = layout.object_name(shard, view)
            columns[column] = layout.decode({name: self.read(name)}, view, layout.rows_of(shard))
        return columns

    def image_sizes(self) -> np.ndarray | None:
        """Height and width of the decoded images, int64 [row, 2]; None for a cache that needs none.

        Raises:
            CacheError: an object is missing or damaged, or holds no size.
        """
        if IMAGE_SIZE not in check_layouts(self.manifest.identity):
            return None
        sizes = self._shared(IMAGE_SIZE).astype(np.int64)
        if not sizes.all():
            raise CacheError(f"{self.path}: {IMAGE_SIZE} holds a size of 0: the cache is damaged")
        return sizes

    def once(self, key: str, make: Callable[[], Made]) -> Made:
        """What several views have in common, made when it is first asked for."""
        with self._making:
            if key not in self._made:
                self._made[key] = make()
            return self._made[key]

    def _shared(self, name: str) -> np.ndarray:
        _ = self.layouts  # whose check bounds what is decoded here
        return self._array(row_layouts(self.manifest.identity)[name])

    @cached_property
    def labels(self) -> np.ndarray:
        """Class ids, or `NO_LABEL`, as int64 [row], or [row, place] where each place of a row's grid has one.

        Raises:
            CacheError: the object is missing or damaged, or holds an id that is no class.
        """
        labels = self._shared(LABELS).astype(np.int64)
        data, num_classes = self.manifest.identity.data, len(self.manifest.identity.classes)
        if data.unlabelled:
            labels[labels == num_classes] = NO_LABEL
        if labels.max() >= num_classes:
            raise CacheError(f"{self.path}: the labels hold a class id of {labels.max()}, which is no class")
        if (found := int((labels == NO_LABEL).sum())) != data.unlabelled:
            raise CacheError(f"{self.path}: {found} rows have no label, and the manifest states {data.unlabelled}")
        return labels

    @cached_property
    def keys(self) -> list[str]:
        """Key strings in row order.

        Raises:
            CacheError: the object is missing or damaged.
        """
        return decode_keys(self._shared(KEYS), self.manifest.identity.num_rows)

    def source_probes(self) -> np.ndarray:
        """Probes of the decoded images: uint8 [row, 20], zeros where not probed.

        Raises:
            CacheError: the object is missing or damaged.
        """
        return self._shared(SOURCE_PROBE)

    def source_checks(self) -> np.ndarray | None:
        """Checks of the decoded images: uint8 [row, 8]; None for a cache that has none, as version 0.1.0 wrote it.

        Raises:
            CacheError: an object is missing or damaged.
        """
        return self._shared(SOURCE_CHECK) if SOURCE_CHECK in row_layouts(self.manifest.identity) else None

    def problems(self) -> Iterator[tuple[str, str | None]]:
        """Check every object's size and checksum: (object name, what is wrong or None), in name order.

        Files that the manifest does not list come last, and, where no object is damaged, the manifest itself, if what
        it lists is not what its arrays consist of.
        """
        whole = True
        names = sorted(self.manifest.objects)
        with ThreadPoolExecutor(_READS_AT_ONCE, thread_name_prefix="check-objects") as executor:
            for name, problem in zip(names, executor.map(self._problem, names), strict=True):
                whole = whole and problem is None
                yield name, problem
        for name in self._objects.sizes():
            # A build that is to replace this cache may have its claims here: they are never read.
            if name not in self.manifest.objects and name != MANIFEST_NAME and not is_claim(name):
                left = name == BUILD_NAME or name.startswith(f"{LEDGER_NAME}/")
                how = "run the build again, which tidies up, or remove it" if left else "remove it"
                yield name, f"{self.path}/{name} is not listed in the manifest; {how}"
        try:
            _ = whole and self.layouts
        except CacheError as error:
            yield MANIFEST_NAME, str(error)

    def _problem(self, name: str) -> str | None:
        record = self.manifest.objects[name]
        try:
            record.check(f"{self.path}/{name}", self._objects.record(name, record.size))
        except CacheError as error:
            return str(error)
        return None
