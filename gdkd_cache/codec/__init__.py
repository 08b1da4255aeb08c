"""Codecs: teacher logits to compact columns and back."""

from typing import Any

import numpy as np

from gdkd_cache.codec.choose import Calibration as Calibration
from gdkd_cache.codec.choose import Choice as Choice
from gdkd_cache.codec.choose import CodecRequest as CodecRequest
from gdkd_cache.codec.choose import calibration_rows as calibration_rows
from gdkd_cache.codec.columns import Codec as Codec
from gdkd_cache.codec.columns import Column as Column
from gdkd_cache.codec.columns import TopK as TopK
from gdkd_cache.codec.columns import class_column as class_column
from gdkd_cache.codec.dense import DenseCodec as DenseCodec
from gdkd_cache.codec.fidelity import ENCODE_ROWS as ENCODE_ROWS
from gdkd_cache.codec.fidelity import encode_rows as encode_rows
from gdkd_cache.codec.fidelity import gradient_error as gradient_error
from gdkd_cache.codec.topk import TopKCodec as TopKCodec
from gdkd_cache.codec.transform import TransformCodec as TransformCodec
from gdkd_cache.codec.transform import tables_from_bytes
from gdkd_cache.errors import CacheError, UsageError
from gdkd_cache.losses import LossSettings


def codec_from_json(stored: dict[str, Any], tables: np.ndarray | None = None) -> Codec:
    """Rebuild the codec that a manifest names.

    Args:
        stored: the codec's `to_json`.
        tables: the codec's `tables_bytes`, for a codec that has some.

    Raises:
        CacheError: an unknown codec, or fields or tables that are missing, unknown or out of range.
    """
    fields = dict(stored)
    name = fields.pop("name", None)
    try:
        if name == "topk":
            fields["temperatures"] = tuple(fields["temperatures"])
            return TopKCodec(**fields)
        if name == "dense":
            return DenseCodec(**fields)
        if name == "transform" and tables is not None:
            sizes = {key: int(fields.pop(key)) for key in ("num_components", "num_groups")}
            fields.pop("tables_bytes")
            sizes |= {key: int(fields[key]) for key in ("num_classes", "num_top")}
            fields["losses"] = tuple(LossSettings(**settings) for settings in fields["losses"])
            return TransformCodec(**fields, tables=tables_from_bytes(tables, **sizes))
    except (TypeError, KeyError, ValueError, UsageError) as error:
        raise CacheError(f"the manifest's codec cannot be read: {error}") from None
    raise CacheError(f"the manifest's codec is {name!r}; this version reads transform, topk and dense")
