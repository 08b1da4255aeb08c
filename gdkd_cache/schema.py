"""What the JSON of a cache must look like: its types, checked before anything is made of it.

What is a frozen dataclass in memory is an object in JSON. The types of its fields say what each may hold; one with a
default may be absent, and is left out where it holds the default; `REST` marks the one that holds all other names.
"""

import dataclasses
import math
import types
import typing
from enum import Enum
from functools import cache
from typing import Any, Final, TypeVar

from gdkd_cache.errors import CacheError

Kind = Any
"""`str`, `int`, `bool`, `float` (any finite number), `None`, `[kind]` (a list), `{"name": kind, "maybe?": kind}`
(these fields, `?` for those that may be absent), `{str: kind}` (any other names), `object` (anything), or a tuple of
alternatives."""

Made = TypeVar("Made")
REST: Final = {"rest": True}


class Absent(Enum):
    """The default of a field that is absent from JSON where null says something else."""

    ABSENT = "absent"


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
    elif isinstance(kind, dict):
        assert isinstance(value, dict)
        fields = {name.removesuffix("?"): name for name in kind if name is not str}
        for name in [*value, *(name for name in fields.values() if not name.endswith("?"))]:
            if name not in value or (name not in fields and str not in kind):
                fault = "is missing" if name in fields else "is not known to this version"
                raise CacheError(f"{what}.{short(name)} {fault}")
            check_json(f"{what}.{short(name)}", value[name], kind[fields.get(name, str)])


@cache
def kind_of(form: Any) -> Kind:
    """The kind of JSON that a type is: a dataclass, a tuple, a dictionary, an alternative of such, or a plain one."""
    if dataclasses.is_dataclass(form):
        kind: dict[Any, Kind] = {}
        for field in dataclasses.fields(form):
            if field.metadata == REST:
                kind[str] = object
            else:
                optional = field.default is not dataclasses.MISSING
                kind[field.name + "?" * optional] = _kind_of_field(field)
        return kind
    arguments = typing.get_args(form)
    if isinstance(form, types.UnionType):
        return _either([kind_of(part) for part in arguments])
    origin = typing.get_origin(form)
    if origin is tuple:
        return [kind_of(arguments[0])]
    if origin is dict:
        return {str: kind_of(arguments[1])}
    return None if form is types.NoneType else form


def from_json(form: type[Made], stored: dict[str, Any]) -> Made:
    """Make an instance of a dataclass from JSON of its kind, which `check_json` has let pass."""
    values: dict[str, Any] = {}
    rest = dict(stored)
    for field in sorted(dataclasses.fields(form), key=lambda field: field.metadata == REST):  # pyright: ignore[reportArgumentType]
        if field.metadata == REST:
            values[field.name] = rest
        elif field.name in rest:
            values[field.name] = _made(field.type, rest.pop(field.name))
    return form(**values)


def to_json(made: Any) -> Any:
    """The JSON of an instance of a dataclass, or of what its fields hold."""
    if dataclasses.is_dataclass(made):
        values: dict[str, Any] = {}
        for field in dataclasses.fields(made):
            value = getattr(made, field.name)
            if field.metadata == REST:
                values |= value
            elif value != field.default:
                values[field.name] = to_json(value)
        return values
    if isinstance(made, tuple | list):
        return [to_json(item) for item in made]
    return {name: to_json(item) for name, item in made.items()} if isinstance(made, dict) else made


def short(value: object) -> str:
    """A value of any size and content as a short, printable text."""
    text = value if isinstance(value, str) and value.isidentifier() else ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _kind_of_field(field: "dataclasses.Field[Any]") -> Kind:
    """What its JSON may be where it is there: without what only stands for its absence."""
    parts = typing.get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
    kinds = [kind_of(part) for part in parts if part is not Absent]
    if field.default is None:
        kinds.remove(None)
    return _either(kinds)


def _either(kinds: list[Kind]) -> Kind:
    if float in kinds and int in kinds:
        kinds.remove(int)  # whole numbers are among the finite ones
    return kinds[0] if len(kinds) == 1 else tuple(kinds)


def _made(form: Any, value: Any) -> Any:
    if isinstance(form, types.UnionType):  # of something and None
        form = typing.get_args(form)[0]
    if value is None or form is object:
        return value
    if isinstance(form, type) and dataclasses.is_dataclass(form):
        return from_json(form, value)
    arguments = typing.get_args(form)
    if typing.get_origin(form) is tuple:
        return tuple(_made(arguments[0], item) for item in value)
    if typing.get_origin(form) is dict:
        return {name: _made(arguments[1], item) for name, item in value.items()}
    return value


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
