"""torchvision's networks."""

import torchvision
from torch import nn

from gdkd_cache.errors import UsageError


def classifier(name: str, num_classes: int) -> nn.Module:
    """One of torchvision's classifiers, with fresh weights.

    Raises:
        UsageError: torchvision has none of that name.
    """
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise UsageError(f"model 'torchvision:{name}': torchvision has no classifier {name!r}")
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes)
