"""The losses by name: to add one, write its file in `methods/` and name it here."""

from typing import TYPE_CHECKING

from gdkd_cache.registry import Entry, Registry

if TYPE_CHECKING:
    from gdkd_cache.losses.base import Loss

LOSSES: "Registry[type[Loss]]" = Registry(
    "loss",
    {
        "kd": Entry("gdkd_cache.losses.methods.kd:KD", "classic knowledge distillation"),
        "dkd": Entry("gdkd_cache.losses.methods.dkd:DKD", "decoupled: the label against the rest"),
        "gdkd": Entry("gdkd_cache.losses.methods.gdkd:GDKD", "generalized decoupled: the top k against the rest"),
        "gdkd3": Entry(
            "gdkd_cache.losses.methods.gdkd3:GDKD3", "gdkd of three groups: the top one, ranks 2 to k, the rest"
        ),
        "dist": Entry("gdkd_cache.losses.methods.dist:DIST", "correlations over the classes and over the batch"),
        "pld": Entry("gdkd_cache.losses.methods.pld:PLD", "list-wise: the teacher's ranking, the label first"),
        "bdkd": Entry("gdkd_cache.losses.methods.bdkd:BDKD", "forward and reverse divergence, balanced by entropies"),
        "sinkd": Entry("gdkd_cache.losses.methods.sinkd:SinKD", "the Sinkhorn distance between batches"),
        "taid": Entry("gdkd_cache.losses.methods.taid:TAID", "a target between student and teacher"),
        "ofa": Entry("gdkd_cache.losses.methods.ofa:OFA", "one for all: the label's part of the target raised"),
        "margin_mse": Entry("gdkd_cache.losses.methods.margin_mse:MarginMSE", "margins of the label's logit"),
    },
    base="gdkd_cache.losses.base:Loss",
)
