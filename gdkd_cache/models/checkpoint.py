"""Which tensors of a file are a network's: found by their names and shapes, whatever holds or wraps them.

Files hold a state dict as it is, or under `model`, `state_dict`, `model_ema`, ...; and what trained the network has
often put its own name before each tensor's: `module.`, `_orig_mod.`, `model.`, `module.student.`. To a reader all of
that is one thing, a text before the network's own names.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

from gdkd_cache.errors import ModelError
from gdkd_cache.models.described import OTHER, Described
from gdkd_cache.schema import short

_LOG = logging.getLogger(__name__)
_DEEPEST = 8  # names are cut at so many dots, counted from the left: room for what holds and what wraps
_UNCOUNTED = "num_batches_tracked"  # which files of torch before 0.4.1 lack, and evaluation does not use
_COUNTERS = ("n_averaged", "total_ops", "total_params")  # of torch's averaging, and of profilers
_SHOWN = 4


def find_weights(
    what: str,
    expected: Mapping[str, Described],
    stored: Mapping[str, Described],
    key: str | None = None,
    *,
    num_classes: int | None = None,
) -> dict[str, str]:
    """The names in a file of a network's tensors, by the network's own.

    A text before the names is taken for the network's where all tensors under it are the network's, and all of the
    network's are there. Where that holds for several, none is taken unless `key` says which.

    Args:
        what: the network, for messages.
        expected: the tensors of its state dict.
        stored: those of the file.
        key: take what lies under this name alone, such as `model_ema` or `module.student`.
        num_classes: where given, tensors of so many classes may have another number of them in the file.

    Raises:
        ModelError: none fits, or several do; it says how, and what the file holds.
    """
    stored = {name: there for name, there in stored.items() if name.rpartition(".")[2] not in _COUNTERS}
    if key is not None:
        under = {name: there for name, there in stored.items() if name.startswith(f"{key}.")}
        if not under:
            heads = list(dict.fromkeys(name.partition(".")[0] for name in stored))
            raise ModelError(f"have no {short(key)}, as --weights-key says; they have {_some(heads)}")
        stored = under
    matching = _matching(expected, stored, num_classes)
    all_of_them = 2 * sum(not _is_optional(name) for name in expected)
    whole = [prefix for prefix, found in matching.items() if found >= all_of_them]
    fitting = [prefix for prefix in whole if _fault(expected, stored, prefix, num_classes) is None]
    if len(fitting) > 1:
        names = ", ".join(short(prefix[:-1]) for prefix in sorted(fitting))
        raise ModelError(f"hold more than one set for {what}: {names}; say which with --weights-key")
    prefix = fitting[0] if fitting else max(matching, key=lambda prefix: matching[prefix], default="")
    if not fitting and (fault := _fault(expected, stored, prefix, num_classes)):
        where = f" (under {short(prefix[:-1])})" if prefix else "" if matching else f"; they are {_some(list(stored))}"
        raise ModelError(f"do not fit {what}: {fault}{where}")
    if left := [name for name, there in stored.items() if there.kind != OTHER and not name.startswith(prefix)]:
        _LOG.info("of the weights, %s is taken, and not %d others: %s", short(prefix[:-1]), len(left), _some(left))
    return {name: prefix + name for name in expected if prefix + name in stored}


def _matching(
    expected: Mapping[str, Described], stored: Mapping[str, Described], num_classes: int | None
) -> Counter[str]:
    """How many tensors of the network lie under each text before their names, of the same shapes first."""
    found: Counter[str] = Counter()
    for name, there in stored.items():
        own, cut = name, 0
        for _ in range(_DEEPEST):
            if own in expected:
                found[name[:cut]] += 2 if _has_shape(there, expected[own], num_classes) else 1
            if not (dot := name.find(".", cut) + 1):
                break
            own, cut = name[dot:], dot
    return found


def _has_shape(there: Described, here: Described, num_classes: int | None) -> bool:
    is_head = num_classes is not None and here.shape[:1] == (num_classes,)
    return there.shape == here.shape or (is_head and there.shape[1:] == here.shape[1:])


def _fault(
    expected: Mapping[str, Described], stored: Mapping[str, Described], prefix: str, num_classes: int | None
) -> str | None:
    """What is wrong with the tensors under a prefix, of the first that is; None where they are the network's."""
    own = {name.removeprefix(prefix): there for name, there in stored.items() if name.startswith(prefix)}
    for name in sorted(expected.keys() | own.keys()):
        there, here = own.get(name), expected.get(name)
        if there == here or (here is None and there is not None and there.kind == OTHER):
            continue
        if there is None:
            if not _is_optional(name):
                return f"{short(name)} is missing"
        elif here is None:
            return f"{short(name)} is not part of it"
        elif there.kind == OTHER:
            return f"{short(name)} is no plain tensor; expected a state dict of plain tensors"
        elif not _has_shape(there, here, num_classes):
            return f"{short(name)} is {list(there.shape)}, expected {list(here.shape)}"
        elif there.kind != here.kind:
            return f"{short(name)} has {there.kind} numbers, expected {here.kind} ones"
    return None


def _is_optional(name: str) -> bool:
    return name.rpartition(".")[2] == _UNCOUNTED


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(short, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
