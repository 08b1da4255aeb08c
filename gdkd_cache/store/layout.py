"""Which arrays a cache consists of, from its identity and codec alone."""

import numpy as np

from gdkd_cache.codec import Codec, Column, class_column
from gdkd_cache.errors import CacheError
from gdkd_cache.store.arrays import ArrayLayout
from gdkd_cache.store.manifest import Identity

LABELS = "labels"
KEYS = "keys"
TABLES = "tables"
PROBE = "probe"
SOURCE_PROBE = "source_probe"
PROBE_BYTES = 20

# crc32 of the pixels (4 bytes, little-endian), then their sketch (16); zeros where not probed.
_PROBES = Column(dtype="uint8", shape=(PROBE_BYTES,), fill=255)


def row_layouts(identity: Identity) -> dict[str, ArrayLayout]:
    """The arrays that all views share.

    `labels` [row], `keys` [byte] (one a line), the codec's `tables` [byte], and the `source_probe` [row] of decoded
    images, when views are replayed.
    """
    extents = {
        LABELS: (class_column(len(identity.classes), ()), identity.num_rows),
        KEYS: (Column(dtype="uint8", shape=(), fill=255), identity.data["keys_bytes"]),  # 255 is not in UTF-8
    }
    if "tables_bytes" in identity.codec:
        # What a fitted codec needs to decode; checked by its object's checksum, so it needs no sentinel.
        extents[TABLES] = (Column(dtype="uint8", shape=(), fill=0), int(identity.codec["tables_bytes"]))
    if identity.views is not None:
        extents[SOURCE_PROBE] = (_PROBES, identity.num_rows)
    return {
        name: ArrayLayout(name=name, column=column, num_rows=length, num_views=None)
        for name, (column, length) in extents.items()
    }


def view_layouts(identity: Identity, codec: Codec) -> dict[str, ArrayLayout]:
    """The arrays `[view, row, ...]`: the codec's columns and, when views are replayed, their probes."""
    columns = codec.columns()
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
