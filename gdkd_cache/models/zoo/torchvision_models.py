"""torchvision's networks."""

from typing import Any

import torchvision
from torch import nn

from gdkd_cache.errors import UsageError

_OPTIONS = {"googlenet": {"init_weights": True}, "inception_v3": {"init_weights": True}}  # else torchvision warns
_HEADS = ("aux1", "aux2", "AuxLogits")


def classifier(name: str, num_classes: int) -> nn.Module:
    """One of torchvision's classifiers, with fresh weights.

    The further heads of some, which torchvision's own training uses, keep their weights and are not trained: the
    network gives the logits of its last layer alone, also in training.

    Raises:
        UsageError: torchvision has none of that name.
    """
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise UsageError(f"model {f'torchvision:{name}'!r}: torchvision has no classifier {name!r}")
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **_OPTIONS.get(name, {}))
    for child, head in model.named_children():
        if child in _HEADS:
            head.requires_grad_(False)
    if name in _OPTIONS:
        model.register_forward_hook(_last_layer)
    return model


def _last_layer(model: nn.Module, inputs: Any, outputs: Any) -> Any:
    return outputs[0] if isinstance(outputs, tuple) else outputs
