"""Who says what of a network: its card, or the library that it is of. A training asks, and loads no network at work."""

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from gdkd_cache.models.card import ModelCard
from gdkd_cache.models.libraries import Library, Stated
from gdkd_cache.models.normalization import Normalization
from gdkd_cache.models.registry import MODELS, bare
from gdkd_cache.models.weights import load_card

CARD = "its card"


def library_of(name: str) -> tuple[Library | None, str]:
    """The library that a name is of, and the name in it; none for other networks."""
    head, argument = MODELS.split(name)
    made: object = MODELS.load(head)
    return (made if isinstance(made, Library) and argument else None), argument or ""


def public_name(name: str) -> str:
    """A network's name for manifests and cards, without places on this machine."""
    own = bare(name)
    library, argument = library_of(own)
    public = own if library is None else f"{MODELS.split(own)[0]}:{library.public_name(argument)}"
    return name.removesuffix(own) + public


def locate(name: str, weights: Path | str) -> Path | None:
    """The file of some weights of a network: those that its library published under that name, or a place on disk.

    Raises:
        UsageError: an unknown network.
        ModelError: the library's weights are neither on this machine nor to be had.
    """
    return located(*library_of(name), weights)


def located(library: Library | None, argument: str, weights: Path | str | None) -> Path | None:
    """The file of some weights: a library's, by their name there, or one by its place; None where none are named."""
    if weights is None:
        return None
    published = library.published(argument, weights) if library and isinstance(weights, str) else None
    return Path(weights) if published is None else published


def said_of(name: str, weights: str, path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What the card of some weights, else the network's library, says of them, by the names of `Stated`; and who."""
    card, (library, argument) = load_card(path), library_of(name)
    return first_said([card and said_by(card), library and library.stated(argument, weights)])


def said_by(card: ModelCard) -> Stated:
    normalization = Normalization(card.mean, card.std)
    return Stated(by=CARD, normalization=normalization, size=card.size, eval_recipe=card.eval_recipe)


def first_said(stated: Iterable[Stated | None]) -> tuple[dict[str, Any], dict[str, str]]:
    """Each thing as the first says it who says it, by name, and who that is."""
    seen: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for one in filter(None, stated):
        for name in (it.name for it in fields(one) if it.name != "by"):
            if name not in seen and getattr(one, name) is not None:
                seen[name], origins[name] = getattr(one, name), one.by
    return seen, origins
