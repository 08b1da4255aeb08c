"""`two-heads:MODEL`: another network with a second head; what `train --method dho` leaves."""

from torch import nn

from gdkd_cache.models.build import build_model
from gdkd_cache.models.heads import TwoHeads, last_linear


def two_heads(network: str, num_classes: int) -> nn.Module:
    """A network whose last linear layer is `TwoHeads`.

    Args:
        network: its spec.
        num_classes: size of the output.

    Raises:
        UsageError, ModelError: as `build_model`; or it has no such layer.
    """
    model = build_model(network, num_classes)
    name, layer = last_linear(model, num_classes, f"model {network}")
    model.set_submodule(name, TwoHeads(layer))
    return model
