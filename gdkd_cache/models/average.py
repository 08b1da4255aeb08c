"""The mean of several weights of one network, such as of a training's last epochs."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor

from gdkd_cache.errors import MismatchError, ModelError, UsageError
from gdkd_cache.models.card import ModelCard
from gdkd_cache.models.described import Described
from gdkd_cache.models.weights import load_card, open_weights, reading
from gdkd_cache.schema import short


def average(paths: Sequence[Path]) -> tuple[dict[str, Tensor], ModelCard]:
    """The mean of weights files with cards, tensor by tensor.

    Floating-point tensors are summed in float64, running statistics of BatchNorm among them; of others, such as
    counts, the last file's are taken. No network is built.

    Args:
        paths: at least two files; a file may be given twice, and then counts twice.

    Returns:
        The tensors by name, of the last file's types, and their card, without an accuracy.

    Raises:
        UsageError: fewer than two files.
        ModelError: a file is missing, damaged or without a card.
        MismatchError: the cards, or the tensors, are not of one network; it names what differs.
        OSError: a file cannot be opened.
    """
    if len(paths) < 2:
        raise UsageError(f"{len(paths)} weights files are given; a mean is of two or more")
    card, described = _card(paths[0]), {}
    sums: dict[str, Tensor] = {}
    last: Mapping[str, Tensor] = {}
    for path in paths:
        _require_same_card(paths[0], card, path, _card(path))
        with open_weights(path) as stored:
            described = described or dict(stored.described)
            _require_same_tensors(paths[0], described, path, stored.described)
            with reading(path):
                last = stored.read(described)
        for name, value in last.items():
            if value.is_floating_point() or value.is_complex():
                wide = value.to(torch.complex128 if value.is_complex() else torch.float64)
                sums[name] = sums[name] + wide if name in sums else wide
    means = {name: (total / len(paths)).to(last[name].dtype) for name, total in sums.items()}
    return {**last, **means}, replace(card, accuracy=None, mean_iou=None)


def _card(path: Path) -> ModelCard:
    card = load_card(path)
    if card is None:
        raise ModelError(
            f"weights {path} do not exist, or have no card: give them one with gdkd-cache export --format safetensors"
        )
    return card


def _require_same_card(first: Path, expected: ModelCard, path: Path, found: ModelCard) -> None:
    names = (field.name for field in fields(ModelCard) if field.name not in ("accuracy", "mean_iou"))
    pairs = {name: (getattr(expected, name), getattr(found, name)) for name in names}
    if differing := {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}:
        said = ", ".join(f"{name} is {short(there)}, not {short(here)}" for name, (here, there) in differing.items())
        raise MismatchError(f"weights {path} are of another network than {first}: {said}")


def _require_same_tensors(
    first: Path, expected: Mapping[str, Described], path: Path, found: Mapping[str, Described]
) -> None:
    for name in sorted(expected.keys() | found.keys()):
        here, there = expected.get(name), found.get(name)
        if here != there:
            said = ["absent" if one is None else f"{one.kind} {list(one.shape)}" for one in (there, here)]
            raise MismatchError(f"weights {path} differ from {first}: {short(name)} is {said[0]}, not {said[1]}")
