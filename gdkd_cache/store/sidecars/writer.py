"""Write a cache as sidecars: one pass over its views, each shard's records appended to its file."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from gdkd_cache.errors import CacheError, MismatchError, UsageError, naming
from gdkd_cache.objects.folder import Folder
from gdkd_cache.objects.record import ObjectRecord
from gdkd_cache.store.layout import (
    IMAGE_SIZE,
    KEYS,
    LABELS,
    SOURCE_CHECK,
    SOURCE_PROBE,
    TABLES,
    encode_keys,
    row_layouts,
    stored_labels,
)
from gdkd_cache.store.manifest import BUILD_NAME, MANIFEST_LIMIT, MANIFEST_NAME
from gdkd_cache.store.reader import CacheReader
from gdkd_cache.store.sidecars.listing import (
    ROWS,
    SHARED,
    SIDECARS_NAME,
    TABLES_NAME,
    Sidecar,
    SidecarSet,
    is_sidecar_name,
    shared_members,
    view_key,
    view_members,
)
from gdkd_cache.store.sidecars.records import END, encode_record, npy_header


def write_sidecars(
    reader: CacheReader, folder: Path, shards: Mapping[str, np.ndarray], advance: Callable[[int], None]
) -> SidecarSet:
    """Write a cache as sidecars.

    Every file is written beside its place, made durable, read back and moved there; `sidecars.json` is the last.

    Args:
        reader: the cache.
        folder: where to; may be that of the image shards.
        shards: for each sidecar's name the cache rows of its samples, int64 [sample]; every row in exactly one.
        advance: is told how many rows of a view were written.

    Raises:
        UsageError: a sidecar's name that is none, such as of a hidden file; or a part of a cache that is predicted from
            views that it does not have among its own.
        MismatchError: other sidecars stand there.
        CacheError: the cache is damaged, or a Zarr cache stands there.
        OSError: the folder cannot be written.
    """
    identity = reader.manifest.identity
    if reader.reference_layouts:
        raise UsageError(
            f"{reader.path} is a part of a cache, predicted from views before it, which have no place in sidecars; "
            "convert a cache that begins with view 0"
        )
    if bad := next((name for name in shards if not is_sidecar_name(name)), None):
        raise UsageError(f"{bad!r} cannot name a sidecar; rename that shard")
    objects = Folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if objects.size(MANIFEST_NAME) is not None or objects.size(BUILD_NAME) is not None:
        raise CacheError(f"{folder} holds a Zarr cache; name another folder for the sidecars")
    if objects.size(SIDECARS_NAME) is not None:
        found = SidecarSet.from_bytes(objects.read(SIDECARS_NAME, MANIFEST_LIMIT))
        if found.manifest.digest != reader.manifest.digest or found.sidecars.keys() != shards.keys():
            raise MismatchError(f"{folder} holds sidecars of another cache, or of other shards; name another folder")
    shared = {LABELS: stored_labels(identity, reader.labels)}
    if SOURCE_PROBE in row_layouts(identity):
        shared[SOURCE_PROBE] = reader.source_probes()
    checks = reader.source_checks()
    if checks is not None:
        shared[SOURCE_CHECK] = checks
    sizes = reader.image_sizes()
    if sizes is not None:
        shared[IMAGE_SIZE] = sizes
    records: dict[str, list[str]] = {name: [] for name in shards}
    files = {name: hashlib.sha256() for name in shards}
    keys_bytes: dict[str, int] = {}

    def append(name: str, data: bytes) -> None:
        with naming(folder / name), _partial(folder, name).open("ab") as file:
            file.write(data)
        files[name].update(data)

    try:
        for name, rows in shards.items():
            _partial(folder, name).unlink(missing_ok=True)
            arrays = {column: data[rows] for column, data in shared.items()}
            arrays |= {ROWS: rows, KEYS: encode_keys([reader.keys[row] for row in rows.tolist()])}
            keys_bytes[name] = len(arrays[KEYS])
            data = encode_record(SHARED, shared_members(identity, len(rows), keys_bytes[name]), arrays)
            append(name, data)
            records[name].append(hashlib.sha256(data).hexdigest())
        for view in identity.view_numbers:
            columns = reader.columns(reader.layouts, view)
            for name, rows in shards.items():
                arrays = {column: data[rows] for column, data in columns.items()}
                data = encode_record(view_key(view), view_members(reader.layouts, len(rows)), arrays)
                append(name, data)
                records[name].append(hashlib.sha256(data).hexdigest())
            advance(identity.num_rows)
        sidecars = {}
        for name, rows in shards.items():
            append(name, END)
            record = ObjectRecord(_partial(folder, name).stat().st_size, files[name].hexdigest())
            _publish(folder, name, record)
            sidecars[name] = Sidecar(len(rows), keys_bytes[name], record, tuple(records[name]))
    finally:
        for name in shards:
            _partial(folder, name).unlink(missing_ok=True)
    tables = None
    if TABLES in row_layouts(identity):
        array = reader.codec.tables_bytes()
        data = npy_header("uint8", array.shape) + array.tobytes()
        objects.write(TABLES_NAME, data)
        tables = ObjectRecord.of(data)
    written = SidecarSet(reader.manifest, tables, sidecars)
    if not objects.create(SIDECARS_NAME, written.to_bytes()):
        raise MismatchError(
            f"{folder} holds other sidecars of this cache; remove {SIDECARS_NAME} there to replace them"
        )
    return written


def _partial(folder: Path, name: str) -> Path:
    return folder / f"{name}.partial"


def _file_record(path: Path) -> ObjectRecord:
    with path.open("rb") as file:
        return ObjectRecord(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _publish(folder: Path, name: str, record: ObjectRecord) -> None:
    """Move a finished file to its place, durable and read back; what stands there already must be the same."""
    partial, path = _partial(folder, name), folder / name
    with naming(path), partial.open("rb+") as file:
        os.fsync(file.fileno())
    if _file_record(partial) != record:
        raise CacheError(f"{path}: what was read back is not what was written; check the disk")
    if path.is_symlink() or (path.exists() and _file_record(path) != record):
        raise MismatchError(f"{path} exists and is another file; remove it, or name another folder")
    partial.replace(path)
