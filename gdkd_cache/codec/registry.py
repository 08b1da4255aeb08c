"""The codecs by name: to add one, write its file (or folder) and name it here."""

from typing import TYPE_CHECKING

from gdkd_cache.registry import Entry, Registry

if TYPE_CHECKING:
    from gdkd_cache.codec.base import Codec

AUTO = "auto"
"""Whichever of the registry's codecs meets the fidelity in the fewest bytes."""

CODECS: "Registry[type[Codec]]" = Registry(
    "codec",
    {
        "transform": Entry(
            "gdkd_cache.codec.transform.codec:TransformCodec",
            "the whole distribution as transform-coded residuals, the top classes exact",
            "transform[:step=X,k=N,references=N]",
        ),
        "grid": Entry(
            "gdkd_cache.codec.grid.codec:GridCodec",
            "of rows of several cells: the whole distribution, transform-coded over classes and over cells",
            "grid[:step=X,k=N]",
        ),
        "topk": Entry(
            "gdkd_cache.codec.topk:TopKCodec",
            "the top classes, the label's logit, and the exact mass of the rest",
            "topk[:k=N,step=X]",
        ),
        "dense": Entry(
            "gdkd_cache.codec.dense:DenseCodec",
            "all logits in float16 or float32, the top classes exact",
            "dense[:k=N,dtype=float32]",
        ),
    },
    base="gdkd_cache.codec.base:Codec",
)
