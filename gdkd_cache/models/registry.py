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
TWO_HEADS = "two-heads"


def _family(module: str, names: str, summary: str) -> dict[str, Entry]:
    """Networks that one file of the zoo makes, by the names that it has for them."""
    return {name: Entry(f"{_ZOO}.{module}:{name}", summary) for name in names.split()}


def _dense(module: str, names: str, summary: str) -> dict[str, Entry]:
    """Networks that one file of the zoo makes, whose names have hyphens here."""
    return {name: Entry(f"{_ZOO}.{module}:{name.replace('-', '_')}", summary) for name in names.split()}


MODELS: "Registry[Callable[..., nn.Module]]" = Registry(
    "model",
    {
        "cnn-s": Entry(f"{_ZOO}.tiny:cnn_s", "a student for tiny images, 6 thousand parameters"),
        "cnn-l": Entry(f"{_ZOO}.tiny:cnn_l", "a teacher for tiny images, 1.1 million parameters"),
        "cnn-xl": Entry(f"{_ZOO}.tiny:cnn_xl", "a larger one, 6.5 million parameters"),
        **_family("resnet", "resnet8 resnet14 resnet20 resnet32 resnet44 resnet56 resnet110", "a ResNet for 32x32"),
        **_family("resnet", "resnet8x4 resnet32x4", "a ResNet for 32x32, four times as wide"),
        **_family("resnet", "ResNet18 ResNet50", "a ResNet as for ImageNet, with a stem for 32x32"),
        **_family("wrn", "wrn_16_1 wrn_16_2 wrn_40_1 wrn_40_2", "a wide ResNet for 32x32: depth, widening"),
        **_family("vgg", "vgg8 vgg11 vgg13 vgg16 vgg19", "a VGG network with batch normalisation for 32x32"),
        **_family("mobilenet", "MobileNetV1", "a MobileNetV1 for ImageNet"),
        **_family("mobilenet", "MobileNetV2", "a MobileNetV2 of half width for 32x32"),
        **_family("shufflenet", "ShuffleV1 ShuffleV2", "a ShuffleNet for 32x32"),
        **_dense("deeplabv3", "deeplabv3-resnet18 deeplabv3-resnet101", "a dense DeepLabV3 at stride 8"),
        **_dense("pspnet", "pspnet-resnet18 pspnet-resnet101", "a dense PSPNet at stride 8"),
        "seg-s": Entry(f"{_ZOO}.tiny_dense:seg_s", "a dense network for small scenes, 49 thousand parameters"),
        TWO_HEADS: Entry(
            f"{_ZOO}.two_heads:two_heads", "another network as train --method dho leaves it", "two-heads:MODEL"
        ),
        "torchvision": Entry(
            f"{_ZOO}.torchvision_models:TORCHVISION",
            "torchvision's classifiers, and dense networks",
            "torchvision:NAME",
        ),
        "timm": Entry(f"{_ZOO}.timm_models:TIMM", "timm's classifiers", "timm:NAME"),
        "hf": Entry(f"{_ZOO}.hf_models:HF", "a classifier that transformers saved in a folder", "hf:FOLDER"),
    },
)


def bare(spec: str) -> str:
    """The spec of the network itself, of one that has got a second head.

    Raises:
        UsageError: it begins with no name of a network.
    """
    name, argument = MODELS.split(spec)
    return bare(argument) if name == TWO_HEADS and argument else spec


_TOLD = [entry.form for entry in MODELS.entries.values() if entry.form]
MODEL_HELP = (
    f"such as cnn-s, resnet8x4, ShuffleV2 (`gdkd-cache models` lists all), {', '.join(_TOLD)}, or package.module:name, "
    "which is called with num_classes, where it takes that."
)
