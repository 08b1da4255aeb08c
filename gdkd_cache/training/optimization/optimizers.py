"""What takes a step: an optimizer of torch's or timm's by name with its arguments, and the scaler of float16's losses.

A spec may stand in a stranger's file. It names one of these classes and gives it plain values; nothing else can run.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from gdkd_cache.errors import UsageError, first_line, is_out_of_memory
from gdkd_cache.schema import short
from gdkd_cache.training.options import TrainOptions

_TIMM = "timm"
_USUAL: Mapping[str, Mapping[str, Any]] = {"sgd": {"momentum": 0.9}}
_OWN = {"lr": "--lr", "weight_decay": "--weight-decay"}
_REFUSED = {"lbfgs": "takes several passes over a batch for a step", "sparseadam": "wants sparse gradients"}
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def make_optimizer(options: TrainOptions, model: nn.Module) -> Optimizer:
    """The optimizer of a training, with a network's parameters.

    Raises:
        UsageError: an unknown optimizer or argument, or a value that it does not take.
    """
    make = parse_optimizer(options)
    device = next((one.device for one in model.parameters()), torch.device("cpu"))
    try:
        _try(make, device)
        return make(_groups(model) if options.no_norm_decay else model.parameters())
    except Exception as error:  # of whatever values, in whatever way
        if is_out_of_memory(error):
            raise
        raise UsageError(f"optimizer {short(options.optimizer)}: {first_line(error)}") from None


def make_scaler(options: TrainOptions, device: torch.device) -> torch.amp.GradScaler:
    """What keeps the gradients of float16 in its range; disabled, it changes nothing, in all other precisions."""
    return torch.amp.GradScaler(device.type, enabled=options.precision == "float16")


def parse_optimizer(options: TrainOptions) -> Callable[[Iterable[Any]], Optimizer]:
    """What makes the optimizer of parameters, or of groups of them; of values it looks at their kind.

    Raises:
        UsageError: an unknown optimizer or argument, one that a training cannot serve, or weight decay where it has
            none.
    """
    spec = options.optimizer
    name, _, settings = spec.partition(":")
    if name.lower() == _TIMM:
        name, _, settings = settings.partition(":")
        kind, make = _of_timm(spec, name.lower())
    else:
        kind = make = _of_torch(spec, name.lower())
    what, taken = f"optimizer {short(spec)}", inspect.signature(kind).parameters
    open_ended = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in taken.values())
    allowed = [one for one in list(taken)[1:] if one not in _OWN and taken[one].kind in _NAMED]
    values = dict(_USUAL.get(name.lower(), {})) if make is kind else {}
    for item in filter(None, settings.split(",")):
        key, equals, text = item.partition("=")
        if key in _OWN:
            raise UsageError(f"{what}: {key} is given with {_OWN[key]}, not here")
        if not equals or not (key in allowed or (open_ended and key.isidentifier())):
            raise UsageError(f"{what}: cannot read {short(item)}; allowed: {', '.join(allowed)}, each as KEY=VALUE")
        values[key] = _value(f"{what}: {key}", text, taken.get(key))
    if "weight_decay" in taken or open_ended:
        values["weight_decay"] = options.weight_decay
    elif options.weight_decay:
        raise UsageError(f"{what} has no weight decay; add --weight-decay 0")
    return lambda parameters: make(parameters, lr=options.lr, **values)


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    """The parameters in two groups: norms and biases, which have one dimension or none, do not decay."""
    parameters = list(model.parameters())
    decayed, kept = ([one for one in parameters if (one.ndim > 1) is many] for many in (True, False))
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _try(make: Callable[[Iterable[Any]], Optimizer], device: torch.device) -> None:
    """Take a step with a parameter that stays 0: some values are only looked at then."""
    parameter = nn.Parameter(torch.zeros(2, 2, device=device))
    parameter.grad = torch.zeros_like(parameter)
    make([parameter]).step()


def _of_torch(spec: str, name: str) -> Callable[..., Optimizer]:
    if name in _REFUSED:
        raise UsageError(f"optimizer {short(spec)} {_REFUSED[name]}, which a training has not; name another")
    kinds = {
        key.lower(): kind
        for key, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer
    }
    known = sorted(kinds.keys() - _REFUSED)
    return kinds[_known(spec, name, known, f"it must be one of {', '.join(known)}, or timm:NAME")]


def _of_timm(spec: str, name: str) -> tuple[Any, Callable[..., Optimizer]]:
    """The class that timm has by a name, and what makes one as timm does."""
    try:
        optim: Any = import_module("timm.optim")
    except ImportError:
        raise UsageError(
            f"optimizer {short(spec)} needs timm, which is not installed: pip install 'gdkd-cache[timm]'"
        ) from None
    plain = _known(
        spec, name.removeprefix("lookahead_"), optim.list_optimizers(), "timm.optim.list_optimizers() tells timm's"
    )
    if optim.get_optimizer_info(plain).second_order:
        raise UsageError(f"optimizer {short(spec)} wants second derivatives, which a training has not; name another")
    try:
        kind = optim.get_optimizer_class(plain, bind_defaults=False)
    except Exception as error:  # of libraries that are not here, or want a GPU
        raise UsageError(f"optimizer {short(spec)}: {first_line(error)}") from None

    def make(parameters: Iterable[Any], **values: Any) -> Optimizer:
        return optim.create_optimizer_v2(parameters, opt=name, **values)

    return kind, make


def _known(spec: str, name: str, known: list[str], otherwise: str) -> str:
    """The name, where it is known; else the nearest are told, where some are near."""
    if name in known:
        return name
    near = difflib.get_close_matches(name, known)
    meant = f"did you mean {' or '.join(near)}?" if near else otherwise
    raise UsageError(f"optimizer is {short(spec)}; {meant}")


def _value(what: str, text: str, parameter: inspect.Parameter | None) -> Any:
    """A plain value of the kind that a parameter has by default: true, false, a number, or several with / between."""
    default = None if parameter is None else parameter.default
    if text.lower() in ("true", "false"):
        value: Any = text.lower() == "true"
    else:
        try:
            numbers = [int(part) if part.removeprefix("-").isdecimal() else float(part) for part in text.split("/")]
        except ValueError:
            numbers = [float("nan")]
        value = tuple(numbers) if len(numbers) > 1 else numbers[0]
        if not all(abs(number) <= 1e300 for number in numbers):
            if not (parameter is not None and "str" in str(parameter.annotation) and text.isidentifier()):
                raise UsageError(
                    f"{what} is {short(text)}; it must be a number, true, false, or several as in 0.9/0.95"
                )
            value = text
    if isinstance(default, tuple) and not (isinstance(value, tuple) and len(value) == len(default)):
        raise UsageError(
            f"{what} is {short(text)}; it must be {len(default)} numbers, as in {'/'.join(map(str, default))}"
        )
    if isinstance(default, bool) and not isinstance(value, bool):
        raise UsageError(f"{what} is {short(text)}; it must be true or false")
    if type(default) in (int, float) and type(value) not in (int, float):
        raise UsageError(f"{what} is {short(text)}; it must be a number")
    return value
