"""Options of commands, made from the fields of dataclasses: name, default, range and help are said there, once."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gdkd_cache.fields import Option, convert_text, field_kind, option_of
from gdkd_cache.terminal import say

_HELP_ALL = "help_all"
_TYPES = {int: click.INT, float: click.FLOAT, Path: click.Path(path_type=Path)}


def takes(**kinds: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of dataclasses, and one instance of each by name; the first one's stand first in help.

    An argument of the command that has the name of a field is given to that dataclass. Where some options are rare,
    `--help` leaves them out and ends with how to see them.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def command(**values: Any) -> Any:
            made = {}
            for name, kind in kinds.items():
                made[name] = kind(**{field.name: values.pop(field.name) for field, _ in _options(kind)})
            return function(**made, **values)

        if any(stated.rare for kind in kinds.values() for _, stated in _options(kind)):
            command = _help_all(command)
        for kind in reversed(kinds.values()):
            for field, stated in reversed(_options(kind)):
                command = _click_option(field, stated)(command)
        return command

    return decorate


def _help_all(command: Any) -> Any:
    """The option `--help-all`, once for a command."""
    given: list[click.Parameter] = getattr(command, "__click_params__", [])
    if any(parameter.name == _HELP_ALL for parameter in given):
        return command
    return click.option(
        "--help-all",
        _HELP_ALL,
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_show_all,
        help="Show all options: these, and those that few need.",
    )(command)


def _show_all(context: click.Context, parameter: click.Parameter, asked: bool) -> None:
    if not asked or context.resilient_parsing:
        return
    rare = [one for one in context.command.params if isinstance(one, click.Option) and one.hidden]
    for one in rare:
        one.hidden = False
    try:
        say(*context.get_help().splitlines())
    finally:
        for one in rare:
            one.hidden = True
    context.exit()


def _options(kind: Any) -> "list[tuple[dataclasses.Field[Any], Option]]":
    """The fields that are options, those that must be given first."""
    found = [(field, stated) for field in dataclasses.fields(kind) if (stated := option_of(field)) is not None]
    return sorted(found, key=lambda one: one[0].default is not dataclasses.MISSING)


def _click_option(field: "dataclasses.Field[Any]", stated: Option) -> Callable[..., Any]:
    flag = stated.flag or f"--{field.name.replace('_', '-')}"
    kind, required = field_kind(field), field.default is dataclasses.MISSING
    default = None if required else field.default
    said = " ".join(filter(None, (stated.help, f"({stated.range})" if stated.range else "")))
    facts: dict[str, Any] = {"required": required, "metavar": stated.metavar, "hidden": stated.rare}
    if not required:  # click takes even None for a value
        facts["default"] = default
    if kind.plain is bool:
        return click.option(flag, field.name, is_flag=True, default=False, help=said, hidden=stated.rare)
    if kind.plain is tuple and stated.joined:

        def read(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
            return convert_text(field, flag, value, separator=",") if isinstance(value, str) else value

        facts |= {"callback": read, "type": click.UNPROCESSED}
    elif kind.length:
        facts |= {"nargs": kind.length, "type": _TYPES.get(kind.items, click.STRING)}
    elif kind.plain is tuple:
        facts |= {"multiple": True, "type": _TYPES.get(kind.items, click.STRING)}
    else:
        facts["type"] = _TYPES.get(kind.plain, click.STRING)
    if stated.alone:
        facts |= {"is_flag": False, "flag_value": stated.alone}
    if stated.unset is not None:
        said += f"  [default: {stated.unset}]"
    elif default not in (None, ()):
        facts["show_default"] = True
    return click.option(flag, field.name, help=said, **facts)


def argument(*names: str, **facts: Any) -> Callable[..., Any]:
    """A positional argument that is a place: not a path, which would lose a slash of s3://."""
    return click.argument(*names, type=str, **facts)
