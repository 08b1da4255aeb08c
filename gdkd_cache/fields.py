"""Fields of frozen dataclasses that say their default, range and help once; all that reads or prints them follows.

A field made by `option` is checked by `check_fields`, read from `key=value,key=value` by `parse_fields`, described by
`describe_fields`, and becomes an option of the command line.
"""

import dataclasses
import math
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
_WORDS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclass(frozen=True, kw_only=True)
class Option:
    """What a field says of itself.

    Attributes:
        help: what it is, in a sentence without its default and range.
        least, most: the smallest and largest number allowed; infinity and NaN never are.
        above: numbers must be larger than this.
        choices: the texts allowed.
        unset: what is done where the value is None, in words.
        flag: its name on the command line, where it is not the field's, such as `--views`.
        metavar: what stands for its value in help.
    """

    help: str
    least: Number | None = None
    most: Number | None = None
    above: Number | None = None
    choices: tuple[str, ...] = ()
    unset: str | None = None
    flag: str | None = None
    metavar: str | None = None

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


def kind_of(field: "dataclasses.Field[Any]") -> tuple[type, bool]:
    """A field's type without `| None`, and whether it may be None; tuples give `tuple`."""
    kind: Any = field.type
    parts = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    first: Any = next(part for part in parts if part is not types.NoneType)
    return typing.get_origin(first) or first, types.NoneType in parts


def check_fields(made: Any, what: str = "") -> None:
    """Check the fields of a dataclass that `option` made, by type and range; called from `__post_init__`.

    Args:
        made: the instance.
        what: its name, for messages.

    Raises:
        UsageError: it names the field, the value and what is allowed.
    """
    for field in dataclasses.fields(made):
        stated = option_of(field)
        if stated is None:
            continue
        value = getattr(made, field.name)
        kind, may_be_none = kind_of(field)
        if value is None and may_be_none:
            continue
        count = _item_count(field) if kind is tuple else None
        if kind is tuple and not (isinstance(value, tuple) and count in (None, len(value))):
            wanted = "a list" if count is None else f"a list of {count}"
            raise UsageError(f"{what}{': ' if what else ''}{field.name} is {value!r}; it must be {wanted}")
        for one in value if isinstance(value, tuple) else (value,):
            fault = _fault(one, _item_kind(field) if kind is tuple else kind, stated)
            if fault:
                raise UsageError(f"{what}{': ' if what else ''}{field.name} is {one!r}; it must be {fault}")


def _item_kinds(field: "dataclasses.Field[Any]") -> tuple[Any, ...]:
    """What stands in the brackets of a field's tuple."""
    parts = typing.get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
    return typing.get_args(next(part for part in parts if typing.get_origin(part) is tuple))


def _item_kind(field: "dataclasses.Field[Any]") -> type:
    item = _item_kinds(field)[0]
    return item if isinstance(item, type) else object


def _item_count(field: "dataclasses.Field[Any]") -> int | None:
    """How many items a tuple must have; None for any number."""
    kinds = _item_kinds(field)
    return None if Ellipsis in kinds else len(kinds)


def _fault(value: Any, kind: type, stated: Option) -> str | None:
    """What a value must be and is not; None when it is."""
    whole = kind is float and type(value) is int
    if kind in (int, float, str, bool) and type(value) is not kind and not whole:
        return {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}[kind]
    if stated.choices and value not in stated.choices:
        return stated.range
    if isinstance(value, int | float) and not isinstance(value, bool):
        finite = -math.inf < value < math.inf  # math.isfinite fails on whole numbers beyond the largest float
        inside = finite
        inside &= stated.least is None or value >= stated.least
        inside &= stated.most is None or value <= stated.most
        inside &= stated.above is None or value > stated.above
        if not inside:
            allowed = f"{kind.__name__} {stated.range}" if stated.range.startswith("in ") else stated.range
            return allowed + ("" if finite else f"{' and' * bool(allowed)} finite")
    return None


def parse_fields(kind: type[Made], what: str, text: str | None, **given: Any) -> Made:
    """Make an instance from the part of a spec after the name.

    Args:
        kind: a dataclass whose fields `option` made.
        what: the spec's name, for messages, such as `loss gdkd`.
        text: `key=value,key=value`; empty or None leaves all defaults. Several values of one key have `/` between.
        given: fields that the spec cannot name.

    Raises:
        UsageError: an unknown key, a missing `=`, a value of another type or out of range.
    """
    fields = {field.name: field for field in dataclasses.fields(kind) if option_of(field) and field.name not in given}  # pyright: ignore[reportArgumentType]
    values: dict[str, Any] = {}
    for item in filter(None, (text or "").split(",")):
        name, equals, value = item.partition("=")
        if not equals or name not in fields:
            allowed = ", ".join(f"{row.name}={row.default}" for row in describe_fields(kind)) or "no options"
            raise UsageError(f"{what}: cannot read {item!r}; allowed: {allowed}")
        values[name] = convert_text(fields[name], what, value)
    return kind(**values, **given)


def convert_text(field: "dataclasses.Field[Any]", what: str, text: str) -> Any:
    """Read a field's value from text.

    Raises:
        UsageError: it is of another type.
    """
    kind, _ = kind_of(field)
    try:
        if kind is tuple:
            item = _item_kind(field)
            return tuple(item(part) for part in text.split("/") if part)
        return _WORDS[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise UsageError(f"{what}: {field.name}={text!r} is not {kind.__name__}") from None


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
            default = stated.unset if field.default is None else field.default
            default = "" if field.default is dataclasses.MISSING else default
            name = kind_of(field)[0]
            word = _KINDS.get(name, "text")
            rows.append(FieldRow(field.name, word, str(default), stated.range, stated.help))
    return rows
