"""`gdkd-cache losses` and `gdkd-cache codecs`: what can be named, with all settings."""

from collections.abc import Iterable, Sequence

import click

from gdkd_cache.fields import FieldRow, describe_fields


def _print(kinds: Iterable[tuple[str, str, Sequence[FieldRow]]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if Console().is_terminal else 140)
    for name, summary, rows in kinds:
        table = Table("setting", "type", "default", "allowed", "what it is", title=f"{name}: {summary}")
        table.title_justify = "left"
        for row in rows:
            table.add_row(row.name, row.kind, row.default, row.range, row.help)
        console.print(table)


@click.command(short_help="List the losses with their settings, defaults and ranges.")
@click.argument("names", nargs=-1)
def losses(names: tuple[str, ...]) -> None:
    """List all losses, or those of NAMES, with their settings.

    Wherever a loss is asked for (train --loss, build --for), it is written as its name, then a colon and settings, as
    in gdkd:k=5,w2=8,temperature=4; what is left out has its default. A loss of your own is package.module:name.

    \b
    Examples:
      gdkd-cache losses
      gdkd-cache losses gdkd my_package.losses:Huber
    """
    from gdkd_cache.losses.registry import LOSSES

    kinds = ((name, LOSSES.load(name)) for name in names or LOSSES)
    _print((name, _summary(kind), describe_fields(kind)) for name, kind in kinds)


@click.command(short_help="List the codecs with their options, defaults and ranges.")
@click.argument("names", nargs=-1)
def codecs(names: tuple[str, ...]) -> None:
    """List all codecs, or those of NAMES, with their options.

    A codec is written as its name, then a colon and options, as in topk:k=16,step=0.02; a codec of your own is
    package.module:name.

    \b
    Examples:
      gdkd-cache codecs
      gdkd-cache codecs topk
    """
    from gdkd_cache.codec.registry import CODECS

    kinds = ((name, CODECS.load(name)) for name in names or CODECS)
    _print((name, _summary(kind), describe_fields(kind.Options)) for name, kind in kinds)


def _summary(kind: type) -> str:
    return (kind.__doc__ or "").strip().split("\n")[0].rstrip(".")
