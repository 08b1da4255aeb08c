"""Distillation losses: pure functions of student and teacher logits [..., class]."""

from gdkd_cache.losses.gdkd import dkd as dkd
from gdkd_cache.losses.gdkd import gdkd as gdkd
from gdkd_cache.losses.gdkd import gdkd3 as gdkd3
from gdkd_cache.losses.kd import kd as kd
from gdkd_cache.losses.kd import standardize as standardize
from gdkd_cache.losses.partition import top_classes as top_classes
from gdkd_cache.losses.settings import LOSS_JSON as LOSS_JSON
from gdkd_cache.losses.settings import LossSettings as LossSettings
