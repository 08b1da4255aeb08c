"""The option `--config`, which repeats a training from its `run.toml`, and what that file is told of the command."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from gdkd_cache.errors import UsageError
from gdkd_cache.fields import option_of, plain_value
from gdkd_cache.schema import short
from gdkd_cache.training.presets.preset import Preset, refuse_code
from gdkd_cache.training.records.tables import read_toml

_NOT_READ = ("out", "force", "use")
"""Options that no file gives: of one run alone, and code."""
_OTHERS = ("cache", "versions")
"""Tables that tell what was read."""


def config_option(**kinds: type) -> Callable[[Any], Any]:
    """The option `--config`, which is read before all others, for a command with the options of these dataclasses."""

    def take(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
        if path is not None:
            context.default_map = {**(context.default_map or {}), **_read(path, kinds)}

    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        default=None,
        is_eager=True,
        expose_value=False,
        callback=take,
        metavar="FILE",
        help="Train as the run.toml of an earlier training says; what else is given here wins.",
    )


def told(**made: Any) -> dict[str, dict[str, Any]]:
    """The options of instances of dataclasses, by field, as tables of `run.toml`."""
    tables = {}
    for name, instance in made.items():
        fields = [field.name for field in dataclasses.fields(instance) if option_of(field) is not None]
        tables[name] = {field: _plain(getattr(instance, field)) for field in fields if field not in _NOT_READ}
    return tables


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value


def _read(path: Path, kinds: Mapping[str, type]) -> dict[str, Any]:
    """The options that a file gives, by field.

    Raises:
        UsageError: no such file, one that is no TOML, or an option that is unknown, of another type or out of range; or
            one that names code.
    """
    values: dict[str, Any] = {}
    for name, table in read_toml(path, "config").items():
        if name in _OTHERS:
            continue
        if name not in kinds or not isinstance(table, dict):
            raise UsageError(f"config {path}: {short(name)} is none of its tables, which are {', '.join(kinds)}")
        fields = {field.name: field for field in dataclasses.fields(kinds[name]) if option_of(field) is not None}
        for key, value in table.items():
            if key not in fields or key in _NOT_READ:
                raise UsageError(f"config {path}: {name}.{short(key)} is no option that a file gives; take it out")
            values[key] = plain_value(fields[key], f"config {path}", value)
    refuse_code(
        Preset(
            name=str(path),
            settings={key: value for key, value in values.items() if key != "recipe"},
            teacher=None,
            recipe=values.get("recipe"),
        )
    )
    return values
