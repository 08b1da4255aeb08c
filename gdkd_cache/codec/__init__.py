"""Codecs: teacher logits to compact columns and back."""

from typing import Any

from gdkd_cache.codec.columns import Codec as Codec
from gdkd_cache.codec.columns import Column as Column
from gdkd_cache.codec.columns import TopK as TopK
from gdkd_cache.codec.columns import class_column as class_column
from gdkd_cache.codec.dense import DenseCodec as DenseCodec
from gdkd_cache.codec.topk import TopKCodec as TopKCodec
from gdkd_cache.errors import CacheError, UsageError
from gdkd_cache.spec import parse_spec

CODECS = ("topk", "dense")


def open_codec(spec: str, num_classes: int, temperatures: tuple[float, ...]) -> Codec:
    """Make a codec from a spec such as `topk`, `topk:k=20`, `dense` or `dense:dtype=float32`.

    Args:
        spec: name and options.
        num_classes: C >= 2.
        temperatures: what `topk` shall store the tail's mass for.

    Raises:
        UsageError: an unknown codec or option.
    """
    name, _, options = spec.partition(":")
    num_top = min(8, num_classes - 1)
    if name == "topk":
        values = parse_spec("codec topk", options, {"k": num_top, "step": 1 / 64})
        return TopKCodec(
            num_classes=num_classes,
            num_top=int(values["k"]),
            temperatures=temperatures,
            step=float(values["step"]),
        )
    if name == "dense":
        values = parse_spec("codec dense", options, {"k": num_top, "dtype": "float16"})
        return DenseCodec(num_classes=num_classes, num_top=int(values["k"]), dtype=str(values["dtype"]))
    raise UsageError(f"codec is {name!r}; it must be one of {', '.join(CODECS)}")


def codec_from_json(stored: dict[str, Any]) -> Codec:
    """Rebuild the codec that a manifest names.

    Raises:
        CacheError: an unknown codec, or fields that are missing, unknown or out of range.
    """
    fields = dict(stored)
    name = fields.pop("name", None)
    try:
        if name == "topk":
            fields["temperatures"] = tuple(fields["temperatures"])
            return TopKCodec(**fields)
        if name == "dense":
            return DenseCodec(**fields)
    except (TypeError, KeyError, UsageError) as error:
        raise CacheError(f"the manifest's codec cannot be read: {error}") from None
    raise CacheError(f"the manifest's codec is {name!r}; this version reads {', '.join(CODECS)}")
