"""The networks by name: to add one, write its file in `zoo/` and name it here.

Each is a callable with `num_classes`; where a text follows the name's colon, that comes first. A `Library` also knows
the weights that it published.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from gdkd_cache.registry import Entry, Registry

if TYPE_CHECKING:
    from torch import nn

_ZOO = "gdkd_cache.models.zoo"
_RESNETS = ("8", "14", "20", "32", "44", "56", "110", "8x4", "32x4")

MODELS: "Registry[Callable[..., nn.Module]]" = Registry(
    "model",
    {
        "cnn-s": Entry(f"{_ZOO}.tiny:cnn_s", "a student for tiny images, 6 thousand parameters"),
        "cnn-l": Entry(f"{_ZOO}.tiny:cnn_l", "a teacher for tiny images, 1.1 million parameters"),
        "cnn-xl": Entry(f"{_ZOO}.tiny:cnn_xl", "a larger one, 6.5 million parameters"),
        **{f"resnet{d}": Entry(f"{_ZOO}.resnet:resnet{d}", "a ResNet for images of about 32x32") for d in _RESNETS},
        "torchvision": Entry(f"{_ZOO}.torchvision_models:TORCHVISION", "torchvision's classifiers", "torchvision:NAME"),
        "timm": Entry(f"{_ZOO}.timm_models:TIMM", "timm's classifiers", "timm:NAME"),
        "hf": Entry(f"{_ZOO}.hf_models:HF", "a classifier that transformers saved in a folder", "hf:FOLDER"),
    },
)

MODEL_HELP = f"{MODELS.forms()}; your own is called with num_classes, where it takes that."
