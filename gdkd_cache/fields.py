"""Fields of frozen dataclasses that say their default, range and help once; all that reads or prints them follows.

A field made by `option` is checked by `check_fields`, read from `key=value,key=value` by `parse_fields`, described by
`describe_fields`, and becomes an option of the command line.
"""

import dataclasses
import sys
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gdkd_cache.errors import UsageError

Number = int | float
Made = TypeVar("Made")
_KINDS = {int: "int", float: "float", str: "text", bool: "flag", Path: "path", tuple: "list"}
_NAMED = {"int": int, "float": float, "str": str, "bool": bool, "None": types.NoneType}
_WORDS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclass(frozen=True, kw_only=True)
class Option:
    """What a field says of itself.

    Attributes:
        help: what it is, in a sentence without its default and range.
        least, most: the smallest and largest number allowed; infinity and NaN never are.
        above: numbers must be larger than this.
        choices: the texts allowed.
        unset: what is done where the value is None or empty, in words.
        flag: its name on the command line, where it is not the field's, such as `--views`.
        metavar: what stands for its value in help.
        alone: its value on the command line where its flag stands alone; empty where it must have one.
        joined: for a tuple: on the command line its values stand in one text, with commas between.
        outcome: whether it changes what is made, and not only where, when or how fast.
        rare: few need it: `--help` leaves it out, `--help-all` shows it, and it works like any other.
    """

    help: str
    least: Number | None = None
    most: Number | None = None
    above: Number | None = None
    choices: tuple[str, ...] = ()
    unset: str | None = None
    flag: str | None = None
    metavar: str | None = None
    alone: str = ""
    joined: bool = False
    outcome: bool = True
    rare: bool = False

    @property
    def range(self) -> str:
        """The allowed values in words; empty where there are no bounds."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.least is not None and self.most is not None:
            return f"in {self.least}..{self.most}"
        bounds = [(self.above, "above"), (self.least, "at least"), (self.most, "at most")]
        return " and ".join(f"{word} {bound}" for bound, word in bounds if bound is not None)


def option(default: Any = dataclasses.MISSING, help: str = "", **facts: Any) -> Any:
    """A field of a frozen dataclass with what `Option` says of it; without a default it must be given."""
    return dataclasses.field(default=default, metadata={"option": Option(help=help, **facts)})


def option_of(field: "dataclasses.Field[Any]") -> Option | None:
    """What a field says of itself; None for one that `option` did not make."""
    return field.metadata.get("option")


@dataclass(frozen=True)
class Kind:
    """A field's type, as far as options know types.

    Attributes:
        plain: int, float, str, bool, Path or tuple; of several alternatives the first.
        items: of a tuple, its values' type.
        length: of a tuple of fixed length; 0 for any.
        optional: whether it may be None.
        single: whether there are no other alternatives.
    """

    plain: type
    items: type = object
    length: int = 0
    optional: bool = False
    single: bool = True


def field_kind(field: "dataclasses.Field[Any]") -> Kind:
    """The type of a field; a quoted annotation is read as far as its built-in names go."""
    stated: Any = field.type
    if isinstance(stated, str):
        parts: tuple[Any, ...] = tuple(_NAMED.get(part.strip(), object) for part in stated.split("|"))
        parts = (tuple,) if stated.startswith("tuple") else parts
    else:
        parts = typing.get_args(stated) if isinstance(stated, types.UnionType) else (stated,)
    others = [part for part in parts if part is not types.NoneType]
    first, arguments = typing.get_origin(others[0]) or others[0], typing.get_args(others[0])
    return Kind(
        plain=first,
        items=arguments[0] if first is tuple and arguments and isinstance(arguments[0], type) else object,
        length=len(arguments) if first is tuple and ... not in arguments else 0,
        optional=len(others) < len(parts),
        single=len(others) == 1,
    )


def check_fields(made: Any, what: str = "") -> None:
    """Check the fields of a dataclass that `option` made, by type and range; called from `__post_init__`.

    Args:
        made: the instance.
        what: its name, for messages.

    Raises:
        UsageError: it names the field, the value and what is allowed.
    """
    for field in dataclasses.fields(made):
        if option_of(field) is not None:
            _check_value(field, what, getattr(made, field.name))


def _check_value(field: "dataclasses.Field[Any]", what: str, value: Any) -> None:
    stated, kind = option_of(field), field_kind(field)
    assert stated is not None
    if value is None and kind.optional:
        return
    if kind.plain is tuple and not (isinstance(value, tuple) and kind.length in (0, len(value))):
        wanted = f"a list of {kind.length}" if kind.length else "a list"
        raise UsageError(f"{what}{': ' if what else ''}{field.name} is {value!r}; it must be {wanted}")
    expected = kind.items if kind.plain is tuple else kind.plain if kind.single else object
    for one in typing.cast("tuple[Any, ...]", value) if kind.plain is tuple else (value,):
        if fault := _fault(one, expected, stated):
            raise UsageError(f"{what}{': ' if what else ''}{field.name} is {one!r}; it must be {fault}")


def plain_value(field: "dataclasses.Field[Any]", what: str, value: Any) -> Any:
    """A field's value from what a file holds: a list for a tuple, a text for a path or for what a text can stand for.

    Raises:
        UsageError: it is of another type or out of range; it names the field, the value and what is allowed.
    """
    kind = field_kind(field)
    if kind.plain is tuple and isinstance(value, list):
        value = tuple(value)
    elif (kind.plain is Path or not kind.single) and not isinstance(value, str):
        raise UsageError(f"{what}: {field.name} is {value!r}; it must be a text")
    elif kind.plain is Path:
        value = Path(value)
    _check_value(field, what, value)
    return value


def _fault(value: Any, kind: type, stated: Option) -> str | None:
    """What a value must be and is not; None when it is."""
    whole = kind is float and type(value) is int
    if kind in (int, float, str, bool) and type(value) is not kind and not whole:
        return {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}[kind]
    if stated.choices and value not in stated.choices:
        return stated.range
    if isinstance(value, int | float) and not isinstance(value, bool):
        finite = abs(value) <= sys.float_info.max  # also of whole numbers, which may be larger
        inside = finite
        inside &= stated.least is None or value >= stated.least
        inside &= stated.most is None or value <= stated.most
        inside &= stated.above is None or value > stated.above
        if not inside:
            allowed = f"{kind.__name__} {stated.range}" if stated.range.startswith("in ") else stated.range
            return " and ".join(filter(None, (allowed, "" if finite else "finite")))
    return None


def parse_fields(kind: type[Made], what: str, text: str | None) -> Made:
    """Make an instance from the part of a spec after the name.

    Args:
        kind: a dataclass whose fields `option` made.
        what: the spec's name, for messages, such as `loss gdkd`.
        text: `key=value,key=value`; empty or None leaves all defaults. Several values of one key have `/` between.

    Raises:
        UsageError: an unknown key, a missing `=`, a value of another type or out of range.
    """
    return kind(**parse_values(kind, what, text))


def parse_values(kind: type, what: str, text: str | None) -> dict[str, Any]:
    """The values that such a text gives, by field.

    Raises:
        UsageError: an unknown key, a missing `=`, a value of another type, or one that is needed and not there.
    """
    fields: dict[str, Any] = {field.name: field for field in dataclasses.fields(typing.cast(Any, kind))}
    values: dict[str, Any] = {}
    for item in filter(None, (text or "").split(",")):
        name, equals, value = item.partition("=")
        if not equals or name not in fields or option_of(fields[name]) is None:
            allowed = ", ".join(f"{row.name}={row.default}" for row in describe_fields(kind)) or "no options"
            raise UsageError(f"{what}: cannot read {item!r}; allowed: {allowed}")
        values[name] = convert_text(fields[name], what, value, separator="/")
    return values


def convert_text(field: "dataclasses.Field[Any]", what: str, text: str, *, separator: str) -> Any:
    """Read a field's value from text; a tuple's values stand with the separator between.

    Raises:
        UsageError: it is of another type.
    """
    kind = field_kind(field)
    try:
        if kind.plain is tuple:
            items: Any = str if kind.items is object else kind.items
            return tuple(items(part) for part in text.split(separator) if part)
        return _WORDS[text.lower()] if kind.plain is bool else typing.cast(Any, kind.plain)(text)
    except (ValueError, KeyError):
        word = _KINDS.get(kind.items if kind.plain is tuple else kind.plain, "text")
        raise UsageError(f"{what}: {field.name}={text!r} is not {word}") from None


@dataclass(frozen=True)
class FieldRow:
    """A field as people read it: name, type, default, range and help."""

    name: str
    kind: str
    default: str
    range: str
    help: str


def describe_fields(kind: Any) -> Sequence[FieldRow]:
    """What the fields of a dataclass say of themselves, in order."""
    rows = []
    for field in dataclasses.fields(kind):
        stated = option_of(field)
        if stated is not None:
            default = "" if field.default is dataclasses.MISSING else field.default
            default = stated.unset or "" if field.default in (None, ()) else default
            word = _KINDS.get(field_kind(field).plain, "text")
            rows.append(FieldRow(field.name, word, str(default), stated.range, stated.help))
    return rows
