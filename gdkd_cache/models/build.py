"""A network from its name."""

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from gdkd_cache.errors import GdkdCacheError, ModelError, UsageError, is_out_of_memory, raised
from gdkd_cache.models.outputs import give_logits
from gdkd_cache.models.registry import MODELS, bare


def build_model(spec: str, num_classes: int, output: str | None = None) -> nn.Module:
    """Build a network with fresh weights from torch's global generator.

    Args:
        spec: a name of the registry, with what belongs after its colon, or a user's own `package.module:name`.
        num_classes: size of the output; a user's own callable that takes none decides itself.
        output: which of several outputs are the logits; as for `pick_logits`.

    Returns:
        A module from float images [batch, 3, height, width] to logits [batch, class].

    Raises:
        UsageError: an unknown name, or code that cannot be imported, or called so.
        ModelError: a user's own callable fails, or does not give a module.
    """
    name, argument = MODELS.split(spec)
    make = MODELS.load(name)
    arguments = () if argument is None else (argument,)
    named = {"num_classes": num_classes} if _takes_classes(make, arguments, spec) else {}
    try:
        model = make(*arguments, **named)
    except (Exception, SystemExit) as error:  # a user's own code may raise anything, and end the process
        if isinstance(error, GdkdCacheError) or is_out_of_memory(error):
            raise
        raise ModelError(f"model {spec!r} cannot be built: {raised(error)}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"model {spec!r} returned {type(model).__name__}; it must return a torch.nn.Module")
    give_logits(model, f"model {spec}", num_classes, output)
    return model


def _takes_classes(make: Callable[..., object], arguments: tuple[str, ...], spec: str) -> bool:
    """Whether a callable takes `num_classes`; else it must be callable with nothing.

    Raises:
        UsageError: it wants something else, or Python cannot tell.
    """
    try:
        signature = inspect.signature(make)
        if "num_classes" not in signature.parameters and not arguments:
            with suppress(TypeError):
                signature.bind()
                return False
        signature.bind(*arguments, num_classes=0)
    except (TypeError, ValueError) as error:
        name, _ = MODELS.split(spec)
        raise UsageError(f"model is {spec!r}; {name} cannot be called with num_classes: {error}") from None
    return True


def outline_model(spec: str, num_classes: int, output: str | None = None) -> nn.Module:
    """As `build_model`, but the parameters of a network of ours take no memory: they are on the device `meta`."""
    if MODELS.split(bare(spec))[0] not in MODELS:
        return build_model(spec, num_classes, output)
    with _parameters_on_meta():
        return build_model(spec, num_classes, output)


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
