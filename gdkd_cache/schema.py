"""What the JSON of a cache must look like: its types, checked before anything is made of it."""

import math
from typing import Any

from gdkd_cache.errors import CacheError

Kind = Any
"""`str`, `int`, `bool`, `float` (any finite number), `None`, `[kind]` (a list), `{str: kind}` (any names),
`{"name": kind, "maybe?": kind}` (these fields, `?` for those that may be absent), `object` (anything), or a tuple of
alternatives."""

_NAMES = {None: "null", float: "a finite number", int: "a whole number", str: "a text", bool: "a truth value"}


def check_json(what: str, value: object, kind: Kind) -> None:
    """Check a parsed JSON value against a kind.

    Args:
        what: the value's name, for messages.
        value: what `json.loads` gave.
        kind: see `Kind`.

    Raises:
        CacheError: another type, a missing or an unknown field; it names the innermost value.
    """
    if isinstance(kind, tuple) and any(_is(value, one) for one in kind):
        kind = next(one for one in kind if _is(value, one))
    if isinstance(kind, tuple) or not _is(value, kind):
        raise CacheError(f"{what} is {short(value)}; expected {_name(kind)}")
    if isinstance(kind, list):
        assert isinstance(value, list)
        for i, item in enumerate(value):
            check_json(f"{what}[{i}]", item, kind[0])
    elif isinstance(kind, dict) and str in kind:
        assert isinstance(value, dict)
        for name, item in value.items():
            check_json(f"{what}.{short(name)}", item, kind[str])
    elif isinstance(kind, dict):
        assert isinstance(value, dict)
        fields = {name.removesuffix("?"): name for name in kind}
        for name in [*value, *(name for name in kind if not name.endswith("?"))]:
            if name not in value or name not in fields:
                fault = "is missing" if name in fields else "is not known to this version"
                raise CacheError(f"{what}.{short(name)} {fault}")
            check_json(f"{what}.{name}", value[name], kind[fields[name]])


def short(value: object) -> str:
    """A value of any size and content as a short, printable text."""
    text = value if isinstance(value, str) and value.isidentifier() else ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is(value: object, kind: Kind) -> bool:
    if isinstance(kind, list | dict):
        return isinstance(value, type(kind))
    if kind is float:
        return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) <= 2**53)
    return kind is object or (value is None if kind is None else type(value) is kind)


def _name(kind: Kind) -> str:
    if isinstance(kind, tuple):
        return " or ".join(map(_name, kind))
    if isinstance(kind, list | dict):
        return "a list" if isinstance(kind, list) else "an object"
    return _NAMES[kind]
