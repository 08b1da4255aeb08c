"""In what two caches, or a build and a cache, differ."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from gdkd_cache.errors import MismatchError
from gdkd_cache.schema import short, to_json
from gdkd_cache.store.facts import NO_CARD, Build
from gdkd_cache.store.manifest import Identity

_FITTED = ("codec", "fidelity")
FITTED = (*_FITTED, "examination", "card")
"""What of an identity does not say what is built: it comes of the build, or may change until its end."""


def differences_between(found: Identity, asked: Identity, *, but: Sequence[str]) -> list[str]:
    """One phrase for each field in which two identities differ, but for those named."""
    there, here = (to_json(identity) for identity in (found, asked))
    for name in but:
        there.pop(name, None)
        here.pop(name, None)
    return [f"{what} is {old} there, {new} asked" for what, old, new in differences(there, here)]


def differences(found: Any, asked: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Each leaf in which two JSON values differ: its path, and both as short texts."""
    if isinstance(found, dict) and isinstance(asked, dict):
        for key in sorted(found.keys() | asked.keys()):
            yield from differences(found.get(key), asked.get(key), f"{path}.{key}" if path else key)
    elif found != asked:
        yield path, short(found), short(asked)


def check_parts(what: str, found: Identity, other: str, asked: Identity) -> None:
    """Refuse two caches that differ in more than their views, what built them, what was examined, and their cards.

    Args:
        what, other: where they are, for the message.
        found, asked: their identities, codec and fidelity included.

    Raises:
        MismatchError: it names up to three things that differ.
    """
    causes_first = sorted(differences(_fixed(found), _fixed(asked)), key=lambda one: one[0].startswith(_FITTED))
    if differing := [f"{name} is {there} there, {here} here" for name, there, here in causes_first]:
        raise MismatchError(
            f"{what} and {other} are not parts of one cache: {'; '.join(differing[:3])}; build both from the same "
            "data, teacher, recipe and seed, and the second with --codec-from the first"
        )


def _fixed(identity: Identity) -> dict[str, Any]:
    views = identity.views and replace(identity.views, first=0)
    return to_json(replace(identity, views=views, num_views=1, build=Build(), card=NO_CARD, examination=None))
