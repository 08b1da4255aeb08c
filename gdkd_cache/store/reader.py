"""Read a finished cache: the manifest alone says what exists, and no byte is used before it was checked."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from gdkd_cache.codec import Codec, codec_from_json
from gdkd_cache.errors import CacheError
from gdkd_cache.store.arrays import ArrayLayout
from gdkd_cache.store.folder import Folder
from gdkd_cache.store.layout import (
    KEYS,
    LABELS,
    check_claims,
    check_objects,
    decode_keys,
    row_layouts,
    tables_layout,
    view_layouts,
)
from gdkd_cache.store.manifest import (
    BUILD_NAME,
    LEDGER_NAME,
    MANIFEST_LIMIT,
    MANIFEST_NAME,
    Manifest,
    ObjectRecord,
)


class CacheReader:
    """Read-only access to a cache folder.

    Attributes:
        path: the folder.
        manifest: the checked manifest.
    """

    def __init__(self, path: Path) -> None:
        """Open a cache: reads and checks the manifest, nothing else.

        Raises:
            CacheError: no cache there, an unfinished build, or a damaged or unknown manifest.
        """
        self._folder = Folder(path)
        if not path.is_dir():
            raise CacheError(f"{path}: no such cache folder; build it with: gdkd-cache build --out {path}")
        if not self._folder.exists(MANIFEST_NAME):
            if self._folder.exists(BUILD_NAME):
                raise CacheError(f"{path} is an unfinished build; run its gdkd-cache build again to resume it")
            raise CacheError(f"{path} is no cache: it has no {MANIFEST_NAME}")
        self.path = path
        self.manifest = Manifest.from_bytes(self._folder.read(MANIFEST_NAME, MANIFEST_LIMIT))
        check_claims(self.manifest)

    @cached_property
    def codec(self) -> Codec:
        """The codec that the manifest names, with its tables."""
        layout = tables_layout(self.manifest)
        return codec_from_json(self.manifest.identity.codec, None if layout is None else self._array(layout))

    @cached_property
    def layouts(self) -> dict[str, ArrayLayout]:
        """The arrays `[view, row, ...]` by column name, once the manifest's objects are those of all arrays."""
        layouts = view_layouts(self.manifest.identity, self.codec)
        check_objects(self.manifest, row_layouts(self.manifest.identity) | layouts)
        return layouts

    def _read(self, name: str) -> bytes:
        record = self.manifest.objects.get(name)
        if record is None:
            raise CacheError(f"{self.path}: the manifest does not list {name}; copy the cache again")
        data = self._folder.read(name, record.size)
        record.check(f"{self.path}/{name}", ObjectRecord.of(data))
        return data

    def _array(self, layout: ArrayLayout, view: int | None = None) -> np.ndarray:
        return layout.decode({name: self._read(name) for name in layout.object_names(view)}, view)

    def column(self, name: str, view: int) -> np.ndarray:
        """One column of one view, every byte checked: [row, ...].

        Raises:
            CacheError: an object is missing or damaged.
        """
        return self._array(self.layouts[name], view)

    def _shared(self, name: str) -> np.ndarray:
        _ = self.layouts  # whose check bounds what is decoded here
        return self._array(row_layouts(self.manifest.identity)[name])

    def labels(self) -> np.ndarray:
        """Class ids as int64 [row].

        Raises:
            CacheError: the object is missing or damaged, or holds an id that is no class.
        """
        labels = self._shared(LABELS).astype(np.int64)
        if labels.max() >= len(self.manifest.identity.classes):
            raise CacheError(f"{self.path}: the labels hold a class id of {labels.max()}, which is no class")
        return labels

    def keys(self) -> list[str]:
        """Key strings in row order.

        Raises:
            CacheError: the object is missing or damaged.
        """
        return decode_keys(self._shared(KEYS), self.manifest.identity.num_rows)

    def problems(self) -> Iterator[tuple[str, str | None]]:
        """Check every object's size and checksum: (object name, what is wrong or None), in name order.

        Files that the manifest does not list come last, and, where no object is damaged, the manifest itself, if what
        it lists is not what its arrays consist of.
        """
        whole = True
        for name, record in sorted(self.manifest.objects.items()):
            try:
                record.check(f"{self.path}/{name}", self._folder.record(name, record.size))
            except CacheError as error:
                whole = False
                yield name, str(error)
            else:
                yield name, None
        for name in self._folder.names():
            if name not in self.manifest.objects and name != MANIFEST_NAME:
                left = name == BUILD_NAME or name.startswith(f"{LEDGER_NAME}/")
                how = "run the build again, which tidies up, or remove it" if left else "remove it"
                yield name, f"{self.path}/{name} is not listed in the manifest; {how}"
        try:
            _ = whole and self.layouts
        except CacheError as error:
            yield MANIFEST_NAME, str(error)
