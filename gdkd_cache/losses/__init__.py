"""Distillation losses: pure functions of student and teacher logits [..., class], and the same by name, as one spec.

`losses.NAME` is the function of the loss NAME of the registry.
"""

from typing import TYPE_CHECKING

from gdkd_cache.lazy import lazy_names
from gdkd_cache.losses.registry import LOSSES

if TYPE_CHECKING:
    from gdkd_cache.losses.base import Loss as Loss
    from gdkd_cache.losses.methods.bdkd import bdkd as bdkd
    from gdkd_cache.losses.methods.dist import dist as dist
    from gdkd_cache.losses.methods.dkd import dkd as dkd
    from gdkd_cache.losses.methods.gdkd import gdkd as gdkd
    from gdkd_cache.losses.methods.gdkd3 import gdkd3 as gdkd3
    from gdkd_cache.losses.methods.kd import kd as kd
    from gdkd_cache.losses.methods.margin_mse import margin_mse as margin_mse
    from gdkd_cache.losses.methods.ofa import ofa as ofa
    from gdkd_cache.losses.methods.pld import pld as pld
    from gdkd_cache.losses.methods.sinkd import sinkd as sinkd
    from gdkd_cache.losses.methods.taid import taid as taid
    from gdkd_cache.losses.partition import standardize as standardize
    from gdkd_cache.losses.partition import top_classes as top_classes

__getattr__ = lazy_names(
    __name__,
    {name: entry.path.partition(":")[0] for name, entry in LOSSES.entries.items()}
    | {"Loss": "gdkd_cache.losses.base"}
    | dict.fromkeys(("standardize", "top_classes"), "gdkd_cache.losses.partition"),
)
