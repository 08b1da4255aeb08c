"""TOML as it is written; Python reads it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any


def toml_value(value: Any) -> str:
    """Texts, numbers, flags and lists of them are written as in JSON, but for one character."""
    return json.dumps(value, default=str, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_table(name: str, values: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a table; what is None or empty is left out."""
    yield from ("", f"[{name}]")
    for key, value in values.items():
        if value not in (None, (), []):
            yield f"{key if key.replace('_', '').isalnum() else toml_value(key)} = {toml_value(value)}"
