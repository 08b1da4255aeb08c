"""What a training is of: what must be the same for it to go on, and what `run.toml` tells."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
import torchvision

from gdkd_cache.cache.cache import Cache
from gdkd_cache.cache.ensemble import Ensemble
from gdkd_cache.cache.signal import Signal
from gdkd_cache.data.source import FullSource
from gdkd_cache.errors import MismatchError
from gdkd_cache.fields import option_of
from gdkd_cache.schema import short
from gdkd_cache.training.feeds import Views
from gdkd_cache.training.options import CROSS_ENTROPY, TrainOptions

_ABSENT = "absent"


def training_facts(
    options: TrainOptions,
    source: FullSource,
    eval_source: FullSource,
    cache: Cache | Ensemble | None,
    views: Views | None,
    teacher: Callable[..., object] | None,
    signal: Signal | None = None,
) -> dict[str, Any]:
    """All that decides what a training gives, as plain JSON: options, data, caches, a signal.

    Options that change where and how fast it runs, not what it gives, are left out.
    """
    decisive = {
        field.name
        for field in dataclasses.fields(options)
        if (stated := option_of(field)) is not None and stated.outcome
    }
    facts = {
        "option": {name: value for name, value in plain_options(options).items() if name in decisive},
        "data": {"name": source.name, "digest": source.digest, "mean": source.mean, "std": source.std},
        "evaluation data": {"name": eval_source.name, "digest": eval_source.digest},
        "cache": {str(number): digest for number, digest in enumerate(_digests(cache))},
        "view": {}
        if views is None
        else {"recipe": _recipe_named(views), "seed": views.seed, "number": views.num_views},
        "teacher": _teacher_facts(teacher),
        **({} if signal is None else {"signal": {"checksum": signal.checksum}}),
    }
    return json.loads(json.dumps(facts, default=str))


def versions() -> dict[str, str]:
    """Of what computes."""
    return {
        "gdkd-cache": version("gdkd-cache"),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
    }


def require_same(there: Mapping[str, Any], here: Mapping[str, Any], out: object) -> None:
    """Refuse to go on with another training.

    Raises:
        MismatchError: it names the differences.
    """
    found = list(_differences(there, here))
    if found:
        more = f", and {len(found) - 4} more" if len(found) > 4 else ""
        raise MismatchError(
            f"{out} holds a training with other settings: {'; '.join(found[:4])}{more}; give the same, name another "
            "--out, or add --force to replace it"
        )


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    for kind in dict.fromkeys((*there, *here)):
        before, now = ({} if not isinstance(facts.get(kind), dict) else facts[kind] for facts in (there, here))
        for name in dict.fromkeys((*before, *now)):
            one, other = before.get(name, _ABSENT), now.get(name, _ABSENT)
            if one != other:
                yield f"{kind} {name} is {short(one)} there and {short(other)} now"


def plain_options(options: TrainOptions) -> dict[str, Any]:
    """The options by field as plain values; what is unset is left out, a loss is its spec."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    values["loss"] = CROSS_ENTROPY if options.distillation is None else options.distillation.spec
    plain = {}
    for name, value in values.items():
        if value is None or value == ():
            continue
        plain[name] = list(value) if isinstance(value, tuple) else value
        if not isinstance(value, int | float | str | tuple):
            plain[name] = str(value)
    return plain


def _teacher_facts(teacher: Callable[..., object] | None) -> dict[str, Any]:
    """Of a live teacher: its weights, where it is a network of ours."""
    description = getattr(getattr(teacher, "__self__", None), "description", None)
    return {} if teacher is None else {"weights": getattr(description, "weights", "unknown")}


def _recipe_named(views: Views) -> str:
    return views.recipe if isinstance(views.recipe, str) else views.recipe.name


def _digests(cache: Cache | Ensemble | None) -> Sequence[str]:
    if cache is None:
        return ()
    parts = cache.caches if isinstance(cache, Ensemble) else [cache]
    return [part.manifest.digest for part in parts]
