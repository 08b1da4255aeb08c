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
    },
    base="gdkd_cache.losses.base:Loss",
)
