"""`dense`: all logits in float16 or float32, plus the exact top classes: for few classes, or as the reference."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gdkd_cache.codec.base import (
    Codec,
    CodecOptions,
    Column,
    Decoded,
    References,
    TopK,
    check_columns,
    check_num_top,
    check_rows,
    class_column,
    class_dtype,
    exact_top,
)
from gdkd_cache.errors import GdkdCacheError, UsageError
from gdkd_cache.fields import option

if TYPE_CHECKING:
    from gdkd_cache.codec.calibration import Calibration

_DTYPES = ("float16", "float32")


@dataclass(frozen=True, kw_only=True)
class DenseOptions(CodecOptions):
    """Options of `dense`."""

    dtype: str = option("float16", "type of the logits; float32 keeps the teacher's bits", choices=_DTYPES)


@dataclass(frozen=True, kw_only=True)
class DenseCodec(Codec):
    """Dense codec: float16 logits centred per row, or float32 logits as the teacher gave them.

    Attributes:
        num_classes: C.
        num_top: how many class ids are kept in exact rank order, 1 <= num_top < C.
        dtype: `float16` or `float32`.
    """

    Options = DenseOptions

    dtype: str = "float16"

    def __post_init__(self) -> None:
        check_num_top(self.num_top, self.num_classes)
        if self.dtype not in _DTYPES:
            raise UsageError(f"codec dense: dtype is {self.dtype!r}; it must be float16 or float32")

    @classmethod
    def fit(cls, calibration: "Calibration", options: DenseOptions, fidelity: float) -> "DenseCodec":
        return cls(num_classes=calibration.num_classes, num_top=calibration.num_top(options), dtype=options.dtype)

    def columns(self) -> dict[str, Column]:
        return {
            "classes": class_column(self.num_classes, (self.num_top,)),
            "logits": Column(dtype=self.dtype, shape=(self.num_classes,), fill=float("nan")),
        }

    def encode(self, logits: Tensor, labels: Tensor, references: References | None = None) -> dict[str, Tensor]:
        z = logits.float()
        stored = z
        if self.dtype == "float16":
            stored = (z - z.mean(-1, keepdim=True)).half()
            if not stored.isfinite().all():
                raise GdkdCacheError("a centred logit exceeds float16's 65504: use codec dense:dtype=float32")
        top = exact_top(z, self.num_top)
        return {"classes": top.classes.to(getattr(torch, class_dtype(self.num_classes))), "logits": stored}

    def check(self, columns: Mapping[str, np.ndarray], labels: np.ndarray, num_references: int = 0) -> None:
        check_columns(columns, self.num_classes)
        ranked = np.take_along_axis(columns["logits"], columns["classes"].astype(np.int64), axis=-1)
        check_rows(ranked[:, 1:] <= ranked[:, :-1], "holds top classes out of the order of their logits")

    def decode(
        self,
        columns: Mapping[str, Tensor],
        labels: Tensor,
        temperature: float | None = None,
        references: References | None = None,
    ) -> Decoded:
        logits, classes = columns["logits"].float(), columns["classes"].long()
        return Decoded(logits, TopK(logits.gather(-1, classes), classes))
