"""A network from its name."""

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from gdkd_cache.errors import GdkdCacheError, ModelError, UsageError, first_line, is_out_of_memory
from gdkd_cache.models.registry import MODELS


def build_model(spec: str, num_classes: int) -> nn.Module:
    """Build a network with fresh weights from torch's global generator.

    Args:
        spec: a name of the registry, with what belongs after its colon, or a user's own `package.module:name`.
        num_classes: size of the output.

    Returns:
        A module from float images [batch, 3, height, width] to logits [batch, class].

    Raises:
        UsageError: an unknown name, or code that cannot be imported or takes no `num_classes`.
        ModelError: a user's own callable fails, or does not give a module.
    """
    name, argument = MODELS.split(spec)
    make = MODELS.load(name)
    arguments = () if argument is None else (argument,)
    try:
        inspect.signature(make).bind(*arguments, num_classes=num_classes)
    except (TypeError, ValueError) as error:  # another signature, or none that Python can tell
        raise UsageError(f"model is {spec!r}; {name} cannot be called with num_classes: {error}") from None
    try:
        model = make(*arguments, num_classes=num_classes)
    except Exception as error:  # a user's own code may raise anything
        if isinstance(error, GdkdCacheError) or is_out_of_memory(error):
            raise
        raise ModelError(f"model {spec!r} cannot be built: {first_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"model {spec!r} returned {type(model).__name__}; it must return a torch.nn.Module")
    return model


def outline_model(spec: str, num_classes: int) -> nn.Module:
    """As `build_model`, but the parameters of a network of ours take no memory: they are on the device `meta`."""
    if MODELS.split(spec)[0] not in MODELS:
        return build_model(spec, num_classes)
    with _parameters_on_meta():
        return build_model(spec, num_classes)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules that this thread makes have parameters without memory; their buffers stay, as code may read them."""
    thread = threading.get_ident()

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or threading.get_ident() != thread:
            return None
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    hook = register_module_parameter_registration_hook(on_meta)  # pyright: ignore[reportArgumentType]  (torch's stub)
    try:
        yield
    finally:
        hook.remove()
