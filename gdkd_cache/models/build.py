"""A network from its name."""

from importlib import import_module

import torchvision
from torch import nn

from gdkd_cache.errors import ModelError, UsageError
from gdkd_cache.models.zoo.resnet import DEPTHS, cifar_resnet
from gdkd_cache.models.zoo.tiny import cnn_l, cnn_s


def build_model(name: str, num_classes: int) -> nn.Module:
    """Build a network with fresh weights from torch's global generator.

    Args:
        name: `cnn-s`, `cnn-l`, a CIFAR ResNet, `torchvision:NAME`, or `package.module:callable`.
        num_classes: size of the output.

    Returns:
        A module from float images [batch, 3, height, width] to logits [batch, class].

    Raises:
        UsageError: an unknown name.
        ModelError: the user's module cannot be imported, or its callable does not give a module.
    """
    if name in ("cnn-s", "cnn-l"):
        return (cnn_s if name == "cnn-s" else cnn_l)(num_classes)
    if (resnet := cifar_resnet(name, num_classes)) is not None:
        return resnet
    package, _, attribute = name.partition(":")
    if package == "torchvision":
        if attribute not in torchvision.models.list_models(module=torchvision.models):
            raise UsageError(f"model {name!r}: torchvision has no classifier {attribute!r}")
        return torchvision.models.get_model(attribute, weights=None, num_classes=num_classes)
    if not package or not attribute:
        raise UsageError(
            f"model is {name!r}; it must be cnn-s, cnn-l, resnet8x4, resnet32x4, a resnet of depth "
            f"{', '.join(map(str, DEPTHS))}, torchvision:NAME or package.module:callable"
        )
    return _users_own(name, package, attribute, num_classes)


def _users_own(name: str, package: str, attribute: str, num_classes: int) -> nn.Module:
    try:
        make = getattr(import_module(package), attribute)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"model {name!r} cannot be imported: {error}; is its folder on PYTHONPATH?") from None
    model = make(num_classes=num_classes)
    if not isinstance(model, nn.Module):
        raise ModelError(f"model {name!r} returned {type(model).__name__}; it must return a torch.nn.Module")
    return model
