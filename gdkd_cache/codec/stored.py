"""Codecs as a manifest holds them."""

from typing import Any

import numpy as np

from gdkd_cache.codec.columns import Codec
from gdkd_cache.codec.dense import DenseCodec
from gdkd_cache.codec.topk import TopKCodec
from gdkd_cache.codec.transform.codec import TransformCodec
from gdkd_cache.codec.transform.tables import tables_from_bytes
from gdkd_cache.errors import CacheError, UsageError
from gdkd_cache.losses.settings import LOSS_JSON, LossSettings
from gdkd_cache.schema import check_json, short

_COMMON = {"name": str, "num_classes": int, "num_top": int}
_JSON = {
    "topk": {**_COMMON, "temperatures": [float], "step": float},
    "dense": {**_COMMON, "dtype": str},
    "transform": {
        **_COMMON,
        **dict.fromkeys(("step", "penalty", "weight_scale"), float),
        "losses": [LOSS_JSON],
        **dict.fromkeys(("num_components", "num_groups", "tables_bytes"), int),
    },
}


def codec_from_json(stored: dict[str, Any], tables: np.ndarray | None = None) -> Codec:
    """Rebuild the codec that a manifest names.

    Args:
        stored: the codec's `to_json`.
        tables: the codec's `tables_bytes`, for a codec that has some.

    Raises:
        CacheError: an unknown codec, or fields or tables that are missing, unknown or out of range.
    """
    name = check_codec_json(stored)
    fields: dict[str, Any] = {field: value for field, value in stored.items() if field != "name"}
    try:
        if name == "topk":
            fields["temperatures"] = tuple(fields["temperatures"])
            return TopKCodec(**fields)
        if name == "dense":
            return DenseCodec(**fields)
        assert tables is not None
        sizes = {field: fields.pop(field) for field in ("num_components", "num_groups")}
        sizes |= {field: fields[field] for field in ("num_classes", "num_top")}
        if fields.pop("tables_bytes") != len(tables):
            raise CacheError(f"the codec's tables hold {len(tables)} bytes, not as many as the manifest says")
        fields["losses"] = tuple(map(LossSettings.from_json, fields["losses"]))
        return TransformCodec(**fields, tables=tables_from_bytes(tables, **sizes))
    except UsageError as error:
        raise CacheError(f"the manifest's codec cannot be read: {error}") from None


def check_codec_json(stored: dict[str, Any]) -> str:
    """Check the types of a codec's `to_json`, and give its name.

    Raises:
        CacheError: an unknown codec, or fields that are missing, unknown or of another type.
    """
    name = stored.get("name")
    if not isinstance(name, str) or name not in _JSON:
        raise CacheError(f"the manifest's codec is {short(name)}; this version reads {', '.join(_JSON)}")
    check_json("the manifest's codec", stored, _JSON[name])
    return name
