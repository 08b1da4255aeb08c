"""TOML files: written, and read where they may be a stranger's."""

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gdkd_cache.errors import UsageError, first_line
from gdkd_cache.files import read_bounded

_FILE_BYTES = 2**20


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The tables of a file of at most 1 MiB.

    Args:
        path: the file.
        what: it is, for messages.

    Raises:
        UsageError: no such file, a larger one, or one that is no TOML.
        OSError: it cannot be read.
    """
    data = read_bounded(path, _FILE_BYTES, what, UsageError)
    try:
        return tomllib.loads(data.decode())
    except Exception as error:  # what a hostile file can raise, RecursionError too
        raise UsageError(f"{what} {path} cannot be read: {first_line(error)}") from None


def toml_value(value: Any) -> str:
    """Texts, numbers, flags and lists of them are written as in JSON, but for one character."""
    return json.dumps(value, default=str, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_table(name: str, values: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a table; what is None or empty is left out."""
    yield from ("", f"[{name}]")
    for key, value in values.items():
        if value not in (None, (), []):
            yield f"{key if key.replace('_', '').isalnum() else toml_value(key)} = {toml_value(value)}"
