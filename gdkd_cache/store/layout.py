"""Which arrays a cache consists of, from its identity and codec alone."""

from collections.abc import Iterator, Mapping

import numpy as np

from gdkd_cache.codec.base import Codec, Column, class_column
from gdkd_cache.errors import CacheError
from gdkd_cache.limits import MOST_SHARD_ROWS, NO_LABEL, SHARD_ROWS
from gdkd_cache.schema import short
from gdkd_cache.store.arrays import ArrayLayout, group_metadata
from gdkd_cache.store.card import CARD_NAMES, card_objects
from gdkd_cache.store.manifest import MANIFEST_NAME, Identity, Manifest

LABELS = "labels"
KEYS = "keys"
TABLES = "tables"
PROBE = "probe"
SOURCE_PROBE = "source_probe"
PROBE_BYTES = 20
SOURCE_CHECK = "source_check"
CHECK_BYTES = 8
IMAGE_SIZE = "image_size"
REFERENCE = "reference_"

# crc32 of the pixels (4 bytes, little-endian), then their sketch (16); zeros where not probed.
_PROBES = Column(dtype="uint8", shape=(PROBE_BYTES,), fill=255)
# The hash of a decoded image (4 bytes, little-endian), then its sketch (4).
_CHECKS = Column(dtype="uint8", shape=(CHECK_BYTES,), fill=255)
# Height and width of a decoded image, which where its views look depends on.
_SIZES = Column(dtype="uint16", shape=(2,), fill=0)
# What is decoded to train on one view may be so many times its compressed size, and this much more. Real views hold
# at least a byte a row and at most some hundred, so only a cache made to exhaust memory goes beyond.
_MOST_EXPANSION = 1024
_FREE_BYTES = 64 * 2**20
_LONG = 2**33


def row_layouts(identity: Identity) -> dict[str, ArrayLayout]:
    """The arrays that all views share.

    `labels` [row, ...], `keys` [byte] (one a line), the codec's `tables` [byte] and, when views are replayed, the
    `source_probe` [row] and `source_check` [row] of decoded images, the latter in shards like those of the views; and
    where views predict others, `image_size` [row] in such shards.
    """
    extents = {
        LABELS: (class_column(_num_labels(identity), identity.cells.label_axis), identity.num_rows),
        KEYS: (Column(dtype="uint8", shape=(), fill=255), identity.data.keys_bytes),  # 255 is not in UTF-8
    }
    if identity.codec.tables_bytes is not None:
        # What a fitted codec needs to decode; checked by its object's checksum, so it needs no sentinel.
        extents[TABLES] = (Column(dtype="uint8", shape=(), fill=0), identity.codec.tables_bytes)
    if identity.views is not None:
        extents[SOURCE_PROBE] = (_PROBES, identity.num_rows)
    layouts = {
        name: ArrayLayout(
            name=name, column=column, num_rows=length, num_views=None, shard_rows=shared_shard_rows(length)
        )
        for name, (column, length) in extents.items()
    }
    return layouts | check_layouts(identity)


def _num_labels(identity: Identity) -> int:
    """How many ids labels have: the classes, and one for rows without a label, if there are any."""
    return len(identity.classes) + bool(identity.data.unlabelled)


def shared_shard_rows(length: int) -> int:
    """Of arrays that all views share: the keys of a billion rows would be more objects than a manifest lists."""
    return SHARD_ROWS if length <= _LONG else MOST_SHARD_ROWS


def check_layouts(identity: Identity) -> dict[str, ArrayLayout]:
    """The arrays of `source_check` and `image_size`, if the cache has them.

    Their shards are committed with those of the first view.
    """
    if identity.views is None:
        return {}
    columns = {SOURCE_CHECK: _CHECKS} if identity.views.source_checks else {}
    columns |= {IMAGE_SIZE: _SIZES} if identity.codec.references else {}
    return {
        name: ArrayLayout(
            name=name, column=column, num_rows=identity.num_rows, num_views=None, shard_rows=identity.shard_rows
        )
        for name, column in columns.items()
    }


def reference_layouts(identity: Identity, codec: Codec) -> dict[str, ArrayLayout]:
    """The arrays `[view, row, ...]` of views before those of the cache that predict them, by the codec's column."""
    num_views = min(identity.view_numbers.start, codec.num_references)
    return {
        name: ArrayLayout(
            name=REFERENCE + name,
            column=column,
            num_rows=identity.num_rows,
            num_views=num_views,
            shard_rows=identity.shard_rows,
        )
        for name, column in (identity.cells.columns(codec) if num_views else {}).items()
    }


def view_layouts(identity: Identity, codec: Codec) -> dict[str, ArrayLayout]:
    """The arrays `[view, row, ...]`: the codec's columns and, when views are replayed, their probes."""
    columns = identity.cells.columns(codec)
    if identity.views is not None:
        columns[PROBE] = _PROBES
    return {
        name: ArrayLayout(
            name=name,
            column=column,
            num_rows=identity.num_rows,
            num_views=identity.num_views,
            shard_rows=identity.shard_rows,
            first_view=identity.view_numbers.start,
        )
        for name, column in columns.items()
    }


def all_layouts(identity: Identity, codec: Codec) -> dict[str, ArrayLayout]:
    """All arrays by name."""
    references = {layout.name: layout for layout in reference_layouts(identity, codec).values()}
    return row_layouts(identity) | view_layouts(identity, codec) | references


def num_objects(identity: Identity, codec: Codec) -> int:
    """How many objects a manifest lists of the arrays."""
    layouts = all_layouts(identity, codec).values()
    return sum(1 + layout.num_shards * (1 if layout.num_views is None else layout.num_views) for layout in layouts)


def shards_of(identity: Identity) -> Iterator[tuple[int, int, range]]:
    """All units of work in order: (view, shard, range of rows)."""
    for view in identity.view_numbers:
        for shard, first in enumerate(range(0, identity.num_rows, identity.shard_rows)):
            yield view, shard, range(first, min(first + identity.shard_rows, identity.num_rows))


def shard_objects(layouts: Mapping[str, ArrayLayout], view: int, shard: int) -> list[str]:
    """Names of all objects of one (view, shard)."""
    return [layout.object_name(shard, view) for layout in layouts.values()]


def encode_shard(
    layouts: Mapping[str, ArrayLayout], view: int, shard: int, columns: Mapping[str, np.ndarray]
) -> dict[str, bytes]:
    """The objects of one (view, shard) by name, from its columns, each [row, ...]."""
    objects: dict[str, bytes] = {}
    for name, layout in layouts.items():
        objects |= layout.encode(columns[name], first_row=shard * layout.shard_rows, view=view)
    return objects


def encode_metadata(identity: Identity, codec: Codec) -> dict[str, bytes]:
    """The metadata objects of the group and all its arrays, and the card, by name."""
    objects = group_metadata() | card_objects(identity)
    for layout in all_layouts(identity, codec).values():
        objects |= layout.metadata()
    return objects


def stored_labels(identity: Identity, labels: np.ndarray) -> np.ndarray:
    """Labels as they are stored, in their column's type: `NO_LABEL` is the id after the classes'."""
    dtype = row_layouts(identity)[LABELS].column.dtype
    return np.where(labels == NO_LABEL, len(identity.classes), labels).astype(dtype)


def encode_rows(
    identity: Identity, keys: list[str], labels: np.ndarray, source_probes: np.ndarray | None
) -> dict[str, bytes]:
    """The objects of `labels`, `keys` and, where there are some, `source_probe`, by name."""
    layouts = row_layouts(identity)
    encoded = layouts[LABELS].encode(stored_labels(identity, labels))
    encoded |= layouts[KEYS].encode(encode_keys(keys))
    return encoded if source_probes is None else encoded | layouts[SOURCE_PROBE].encode(source_probes)


def check_claims(manifest: Manifest) -> None:
    """Refuse extents that the listed objects cannot hold, by arithmetic alone, before anything of that extent is made.

    Raises:
        CacheError: the manifest claims more shards than it lists objects.
    """
    identity, rows = manifest.identity, row_layouts(manifest.identity)
    shards = identity.num_views * -(-identity.num_rows // identity.shard_rows)
    shards += sum(layout.num_shards for layout in rows.values())
    if shards > len(manifest.objects):
        raise CacheError(
            f"{MANIFEST_NAME} claims {identity.num_rows} rows in {identity.num_views} views, at least {shards} "
            f"objects, and lists {len(manifest.objects)}: it is forged"
        )


def tables_layout(manifest: Manifest) -> ArrayLayout | None:
    """The codec's tables, once their listed objects can hold them; None for a codec that has none.

    Raises:
        CacheError: they cannot.
    """
    layout = row_layouts(manifest.identity).get(TABLES)
    if layout is not None:
        if layout.num_shards > len(manifest.objects):
            raise CacheError(f"{MANIFEST_NAME} claims tables of {layout.num_rows} bytes: it is forged")
        _check_expansion(manifest, {TABLES: layout})
    return layout


def check_objects(manifest: Manifest, codec: Codec) -> None:
    """Check that a manifest lists exactly the objects of its arrays, and that one view fits in memory.

    Args:
        manifest: its claims are checked.
        codec: its codec.

    Raises:
        CacheError: an object is not listed or belongs to no array, or sizes that no real cache has.
    """
    layouts, expected = all_layouts(manifest.identity, codec), {"zarr.json"}
    for layout in layouts.values():
        expected.update(layout.all_names())
    if odd := sorted((expected ^ manifest.objects.keys()) - CARD_NAMES):  # some caches have no page
        fault = "does not list" if odd[0] in expected else "lists"
        raise CacheError(
            f"{MANIFEST_NAME} {fault} {short(odd[0])} ({len(odd)} objects are not those of its arrays): it is forged"
        )
    _check_expansion(manifest, layouts)
    held = codec.num_references * codec.num_predicted * manifest.identity.num_rows
    if held > _FREE_BYTES + _MOST_EXPANSION * sum(record.size for record in manifest.objects.values()):
        raise CacheError(f"{MANIFEST_NAME}: what predicts its views would take {held:,} bytes: it is forged")


def _check_expansion(manifest: Manifest, layouts: Mapping[str, ArrayLayout]) -> None:
    """Refuse arrays of which one view, with what all views share, would expand too far."""
    decoded = sum(layout.decoded_bytes for layout in layouts.values())
    if decoded <= _FREE_BYTES:
        return
    first = max(layout.first_view for layout in layouts.values())
    for view in range(first, first + max(layout.num_views or 1 for layout in layouts.values())):
        names = (
            name
            for layout in layouts.values()
            for name in layout.object_names(None if layout.num_views is None else view)
        )
        stored = sum(manifest.objects[name].size for name in names if name in manifest.objects)
        if decoded > _FREE_BYTES + _MOST_EXPANSION * stored:
            raise CacheError(
                f"{MANIFEST_NAME}: view {view} would expand from {stored:,} bytes to {decoded:,}, more than "
                f"{_MOST_EXPANSION} times: its logits are all but constant, or it is forged"
            )


def encode_keys(keys: list[str]) -> np.ndarray:
    """Key strings as uint8 [byte], one key a line."""
    return np.frombuffer("".join(f"{key}\n" for key in keys).encode(), np.uint8)


def decode_keys(data: np.ndarray, num_rows: int) -> list[str]:
    """Key strings from their bytes.

    Raises:
        CacheError: no UTF-8, or not one key for each row.
    """
    try:
        keys = data.tobytes().decode().split("\n")[:-1]
    except UnicodeDecodeError:
        raise CacheError("the key table is not UTF-8 text") from None
    if len(keys) != num_rows or len(set(keys)) != num_rows:
        raise CacheError(f"the key table holds {len(set(keys))} distinct keys for {num_rows} rows")
    return keys
