"""Which of a network's outputs are its logits: many give features, further heads or an object beside them."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from gdkd_cache.errors import ModelError
from gdkd_cache.models.cells import outputs_of
from gdkd_cache.schema import short

_LOGITS = "logits"
_SHOWN = 8


def give_logits(model: nn.Module, what: str, num_classes: int, output: str | None = None) -> None:
    """Have a network give one output alone, as `pick_logits` finds it; a tensor stays what it is.

    A dense network gives all that it says it has, unless `output` names one.

    Args:
        model: what is called; its weights keep their names.
        what: the network, for messages.
        num_classes, output: as for `pick_logits`.
    """

    if output is None and outputs_of(model):
        return
    # No function in a function: networks are pickled.
    model.register_forward_hook(partial(_pick, what=what, num_classes=num_classes, output=output))


def _pick(module: nn.Module, inputs: Any, outputs: Any, *, what: str, num_classes: int, output: str | None) -> Any:
    return pick_logits(outputs, what, num_classes, output)


def pick_logits(outputs: Any, what: str, num_classes: int, output: str | None = None) -> Any:
    """The logits among outputs: those named, else what is called `logits`, else the only [batch, class] tensor.

    Args:
        outputs: what a network gave: a tensor, or a tuple, dictionary or object of several things.
        what: the network, for messages.
        num_classes: C.
        output: the name or the number of the one to take.

    Returns:
        That output; what is no tensor and holds none is given back as it is, for its user to refuse.

    Raises:
        ModelError: no such output, none that could be the logits, or several.
    """
    if isinstance(outputs, Tensor) and output is None:
        return outputs
    parts = _parts(outputs)
    if output is not None:
        if output not in parts:
            raise ModelError(f"{what} gives no output {short(output)}, as --output says, but {_said(outputs, parts)}")
        return parts[output]
    if _LOGITS in parts:
        return parts[_LOGITS]
    fitting = [name for name, part in parts.items() if _could_be(part, num_classes)]
    if len(fitting) == 1:
        return parts[fitting[0]]
    if not any(isinstance(part, Tensor) for part in parts.values()):
        return outputs
    raise ModelError(
        f"{what} gives {_said(outputs, parts)}; {'several' if fitting else 'none'} of them could be logits of "
        f"{num_classes} classes: say which are with --output {'|'.join(fitting or list(parts)[:_SHOWN])}"
    )


def _parts(outputs: Any) -> dict[str, Any]:
    """Outputs by name, or by number where they have none."""
    if isinstance(outputs, Tensor):
        return {}
    if isinstance(outputs, Mapping):
        return {str(name): part for name, part in outputs.items()}
    if isinstance(outputs, tuple | list):
        names = getattr(outputs, "_fields", range(len(outputs)))
        return {str(name): part for name, part in zip(names, outputs, strict=True)}
    return dict(vars(outputs)) if hasattr(outputs, "__dict__") else {}


def _could_be(part: Any, num_classes: int) -> bool:
    return isinstance(part, Tensor) and part.is_floating_point() and part.ndim == 2 and part.shape[1] == num_classes


def _said(outputs: Any, parts: Mapping[str, Any]) -> str:
    """What outputs are, in words."""
    if not parts:
        return f"one {type(outputs).__name__}"
    shown = [f"{short(name)} {_shape(part)}" for name, part in list(parts.items())[:_SHOWN]]
    return f"a {type(outputs).__name__} of {', '.join(shown)}{', ...' if len(parts) > _SHOWN else ''}"


def _shape(part: Any) -> str:
    return str(list(part.shape)) if isinstance(part, Tensor) else f"({type(part).__name__})"
