"""A network from its name."""

import inspect

from torch import nn

from gdkd_cache.errors import ModelError, UsageError
from gdkd_cache.models.registry import MODELS


def build_model(spec: str, num_classes: int) -> nn.Module:
    """Build a network with fresh weights from torch's global generator.

    Args:
        spec: a name of the registry, with what belongs after its colon, or a user's own `package.module:name`.
        num_classes: size of the output.

    Returns:
        A module from float images [batch, 3, height, width] to logits [batch, class].

    Raises:
        UsageError: an unknown name, or code that cannot be imported.
        ModelError: a user's own callable does not give a module.
    """
    name, argument = MODELS.split(spec)
    make = MODELS.load(name)
    arguments = () if argument is None else (argument,)
    try:
        inspect.signature(make).bind(*arguments, num_classes=num_classes)
    except TypeError as error:
        raise UsageError(f"model is {spec!r}; {name} cannot be called so: {error}") from None
    model = make(*arguments, num_classes=num_classes)
    if not isinstance(model, nn.Module):
        raise ModelError(f"model {spec!r} returned {type(model).__name__}; it must return a torch.nn.Module")
    return model
