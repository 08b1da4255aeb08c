"""Codecs as a manifest holds them: JSON that is checked before anything is made of it, and tables."""

from typing import Any

import numpy as np

from gdkd_cache.codec.base import Codec
from gdkd_cache.codec.registry import CODECS
from gdkd_cache.errors import CacheError, UsageError
from gdkd_cache.schema import check_json, short

_COMMON = {"name": str, "num_classes": int, "num_top": int, "tables_bytes?": int}


def codec_from_json(stored: dict[str, Any], tables: np.ndarray | None = None) -> Codec:
    """Rebuild the codec that a manifest names.

    Args:
        stored: the codec's `to_json`.
        tables: the codec's `tables_bytes`, for a codec that has some.

    Raises:
        CacheError: an unknown codec, one of somebody's own that nobody has named in this process, or fields or tables
            that are missing, unknown or out of range.
    """
    check_codec_json(stored)
    kind = CODECS.known(stored["name"])
    tables = np.zeros(0, np.uint8) if tables is None else tables
    if stored.get("tables_bytes", 0) != len(tables):
        raise CacheError(f"the codec's tables hold {len(tables)} bytes, not as many as the manifest says")
    fields = {name: value for name, value in stored.items() if name not in ("name", "tables_bytes")}
    try:
        return kind.from_json(fields, tables)
    except UsageError as error:
        raise CacheError(f"the manifest's codec cannot be read: {error}") from None


def check_codec_json(stored: dict[str, Any]) -> None:
    """Check the types of a codec's `to_json`; of somebody's own codec that nobody has named, what all codecs have.

    Raises:
        CacheError: an unknown codec, or fields that are missing, unknown or of another type.
    """
    name = stored.get("name")
    if isinstance(name, str) and CODECS.is_known(name):
        check_json("the manifest's codec", stored, _COMMON | CODECS.known(name).json_kinds())
    elif isinstance(name, str) and ":" in name:
        check_json("the manifest's codec", {field: stored.get(field) for field in _COMMON if field in stored}, _COMMON)
    else:
        raise CacheError(f"the manifest's codec is {short(name)}; this version reads {', '.join(CODECS)}")
