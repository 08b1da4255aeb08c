"""What a set of sidecars is: `sidecars.json`, and which members a record has."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gdkd_cache.errors import CacheError
from gdkd_cache.objects.record import ObjectRecord
from gdkd_cache.schema import check_json, short
from gdkd_cache.store.arrays import ArrayLayout
from gdkd_cache.store.layout import IMAGE_SIZE, KEYS, LABELS, SOURCE_CHECK, SOURCE_PROBE, row_layouts
from gdkd_cache.store.manifest import MANIFEST_NAME, Identity, Manifest, canonical_json, objects_from_json, parse_json
from gdkd_cache.store.sidecars.records import Members

SIDECAR_SUFFIX = ".logits.tar"
SIDECARS_NAME = "sidecars.json"
TABLES_NAME = "sidecars.tables.npy"
ROWS = "rows"
SHARED = "shared"
_FORMAT = "gdkd-cache-sidecars/1"
_SIDECAR = {"rows": int, "keys_bytes": int, "file": [object], "records": [str]}
_SET = {
    "format": str,
    "manifest": {str: object},
    "tables": (None, [object]),
    "sidecars": {str: _SIDECAR},
    "digest": str,
}
_LARGEST = 2**48  # of any count, so that none overflows a header
_NAME = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]*\.logits\.tar")


def is_sidecar_name(name: str) -> bool:
    """Whether it is a plain file name, not hidden, that ends in `.logits.tar`."""
    return _NAME.fullmatch(name) is not None


def view_key(view: int) -> str:
    """The key of a view's record."""
    return f"{view:05d}"


@dataclass(frozen=True)
class Sidecar:
    """One sidecar as `sidecars.json` lists it.

    Attributes:
        num_rows: samples of its image shard.
        keys_bytes: length of their key table.
        file: size and SHA-256 of the whole file.
        records: SHA-256 of the shared record, then of each view's.
    """

    num_rows: int
    keys_bytes: int
    file: ObjectRecord
    records: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        file = [self.file.size, self.file.sha256]
        return {"rows": self.num_rows, "keys_bytes": self.keys_bytes, "file": file, "records": list(self.records)}


@dataclass(frozen=True)
class SidecarSet:
    """A whole cache in sidecars.

    Attributes:
        manifest: of the Zarr cache with the same content, to the byte.
        tables: size and SHA-256 of the codec's tables; None when it has none.
        sidecars: by file name.
    """

    manifest: Manifest
    tables: ObjectRecord | None
    sidecars: dict[str, Sidecar]

    def _body(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "manifest": parse_json(MANIFEST_NAME, self.manifest.to_bytes()),
            "tables": None if self.tables is None else [self.tables.size, self.tables.sha256],
            "sidecars": {name: sidecar.to_json() for name, sidecar in self.sidecars.items()},
        }

    @property
    def digest(self) -> str:
        """`sha256:` over the manifest and every sidecar's checksums: what a user of sidecars pins."""
        return "sha256:" + hashlib.sha256(canonical_json(self._body())).hexdigest()

    def to_bytes(self) -> bytes:
        return canonical_json(self._body() | {"digest": self.digest})

    @classmethod
    def from_bytes(cls, data: bytes) -> "SidecarSet":
        """Parse and check what `to_bytes` gave.

        Raises:
            CacheError: no JSON, another format version, wrong types, rows that are not the manifest's, or a digest
                that is not its own.
        """
        stored = parse_json(SIDECARS_NAME, data)
        if stored.get("format") != _FORMAT:
            found = short(stored.get("format"))
            raise CacheError(f"{SIDECARS_NAME}: the format is {found}; this version reads {_FORMAT!r}")
        check_json(SIDECARS_NAME, stored, _SET)
        tables, listed = stored["tables"], stored["sidecars"]
        files = objects_from_json(SIDECARS_NAME, {name: own["file"] for name, own in listed.items()})
        found = cls(
            Manifest.from_bytes(canonical_json(stored["manifest"])),
            None if tables is None else objects_from_json(SIDECARS_NAME, {TABLES_NAME: tables})[TABLES_NAME],
            {
                name: Sidecar(own["rows"], own["keys_bytes"], files[name], tuple(own["records"]))
                for name, own in listed.items()
            },
        )
        if stored["digest"] != found.digest:
            raise CacheError(f"{SIDECARS_NAME} was changed: its digest is not its own; copy it again")
        found._check()
        return found

    def _check(self) -> None:
        identity = self.manifest.identity
        for name, sidecar in self.sidecars.items():
            if not is_sidecar_name(name):
                raise CacheError(f"{SIDECARS_NAME}: {short(name)} is not the name of a sidecar")
            counts = (sidecar.num_rows, sidecar.keys_bytes, sidecar.file.size)
            if not all(1 <= count <= _LARGEST for count in counts):
                raise CacheError(f"{SIDECARS_NAME}: rows, bytes of keys and size of {name} are {counts}")
            if len(sidecar.records) != identity.num_views + 1:
                raise CacheError(f"{SIDECARS_NAME}: {name} has not one record for each of {identity.num_views} views")
        for what, counts, expected in (
            ("rows", [sidecar.num_rows for sidecar in self.sidecars.values()], identity.num_rows),
            ("bytes of keys", [sidecar.keys_bytes for sidecar in self.sidecars.values()], identity.data.keys_bytes),
        ):
            if sum(counts) != expected:
                raise CacheError(f"{SIDECARS_NAME}: the sidecars have {sum(counts)} {what}, the cache {expected}")


def shared_members(identity: Identity, num_rows: int, keys_bytes: int) -> Members:
    """The members of a sidecar's shared record."""
    layouts = row_layouts(identity)
    members: Members = {ROWS: ("int64", (num_rows,)), KEYS: ("uint8", (keys_bytes,))}
    for name in (LABELS, SOURCE_PROBE, SOURCE_CHECK, IMAGE_SIZE):
        if name in layouts:
            members[name] = (layouts[name].column.dtype, (num_rows, *layouts[name].column.shape))
    return members


def view_members(layouts: Mapping[str, ArrayLayout], num_rows: int) -> Members:
    """The members of a view's record."""
    return {name: (layout.column.dtype, (num_rows, *layout.column.shape)) for name, layout in layouts.items()}
