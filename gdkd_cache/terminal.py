"""What is said to a person: the one place that prints, so that no name can forge a line or steer a terminal.

Names come from files, manifests and servers of others. Every line of every command, its progress, logs and warnings
leaves through here, one line for each text; nothing else in the package prints (a test looks).
"""

import json
import logging
import sys
import traceback
import warnings
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

from gdkd_cache.errors import naming

_WIDTH = 160  # of tables that no terminal shows
Cell = str | Sequence[str]
"""What stands in a table: a text of one line, or some lines."""


def printable(text: object) -> str:
    """Text on one line: what steers a terminal, ends a line, hides or turns text, or is no character, as an escape."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(text))


def say(*lines: object, error: bool = False) -> None:
    """Print texts, each on a line of its own whatever it holds.

    Raises:
        OSError: they cannot be written.
    """
    stream = sys.stderr if error else sys.stdout
    with naming("standard error" if error else "standard output"):
        print("".join(f"{printable(line)}\n" for line in lines), end="", file=stream, flush=True)


def say_json(value: Any) -> None:
    """Print a value as JSON, whose texts are escaped ASCII."""
    say(*json.dumps(value, indent=1).split("\n"))


def say_table(columns: Iterable[str], rows: Iterable[Sequence[Cell]], *, title: str | None = None) -> None:
    """Print a table, as wide as the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text  # of which nothing is taken for markup

    def text(cell: Cell) -> Text:
        return Text("\n".join(map(printable, [cell] if isinstance(cell, str) else cell)))

    table = Table(title=None if title is None else text(title), title_justify="left")
    for column in columns:
        table.add_column(text(column))
    for row in rows:
        table.add_row(*map(text, row))
    with naming("standard output"):
        Console(highlight=False, width=None if Console().is_terminal else _WIDTH).print(table)


def log_lines(level: int, indent: str = "") -> None:
    """Let what is logged at this level or above go to stderr, a line for each message."""
    handler = logging.StreamHandler()
    handler.setFormatter(Line(f"{indent}%(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


class Line(logging.Formatter):
    """Writes a message as one line of printable characters."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def guard() -> None:
    """Let also what this program does not say itself pass here: warnings, and the traceback of a fault of its own.

    And let no character fail that a stream's encoding lacks: it is told as an escape.
    """
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    warnings.showwarning = _say_warning
    sys.excepthook = _say_traceback


def _say_warning(message: Warning | str, *where: Any, **how: Any) -> None:
    say(f"warning: {message}", error=True)


def _say_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    for part in traceback.format_exception(kind, error, trace):
        told = part.strip("\n")
        say(*(told.split("\n") if told.startswith("  ") else [told]), error=True)  # a frame; or a message, of any text
