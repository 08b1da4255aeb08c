"""The files of `--figures`: each figure as SVG, and each table as CSV that no spreadsheet runs anything of."""

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gdkd_cache.errors import MismatchError
from gdkd_cache.files import replace_file
from gdkd_cache.report.base import Cell, Drawing, Part, Table
from gdkd_cache.report.svg import to_svg
from gdkd_cache.texts import shown

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"  # as themselves and as East Asian keyboards write them
_LONGEST = 1000


def part_files(parts: Sequence[Part]) -> dict[str, bytes]:
    """Files of all figures and tables by name."""
    files: dict[str, bytes] = {}
    for name, data in _files(parts):
        assert _NAME.fullmatch(name.rpartition(".")[0]), name
        assert name not in files, name
        files[name] = data
    return files


def _files(parts: Sequence[Part]) -> Iterator[tuple[str, bytes]]:
    for part in parts:
        if isinstance(part, Drawing):
            yield f"{part.table.name}.svg", to_svg(part.figure, part.table.name).encode()
            yield f"{part.table.name}.csv", table_csv(part.table)
        elif isinstance(part, Table):
            yield f"{part.name}.csv", table_csv(part)


def table_csv(table: Table) -> bytes:
    """A table as CSV in UTF-8, all of its rows; numbers as they are, and nothing where nothing is known.

    A text that a spreadsheet would take for a formula has an apostrophe before it.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([_cell(column.title) for column in table.columns])
    writer.writerows([_cell(cell) for cell in row] for row in table.rows)
    return file.getvalue().encode()


def require_folder(folder: Path) -> None:
    """See that files can be put into a folder, which may not exist yet: before the work that makes them.

    Raises:
        MismatchError: something else has that name, or the folder that it would be in does not exist.
    """
    if folder.exists() and not folder.is_dir():
        raise MismatchError(f"{folder} is no folder; name another --figures")
    if not folder.exists() and not folder.parent.is_dir():
        raise MismatchError(f"{folder.parent} is no folder; make it, or name another --figures")


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put files into a folder, each whole or not at all; others that are there stay.

    Raises:
        OSError: one cannot be written.
    """
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        replace_file(folder / name, data)


def _cell(cell: Cell) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if not isinstance(cell, str):
        return repr(float(cell)) if isinstance(cell, float) else str(cell)
    text = shown(cell, _LONGEST)
    return f"'{text}" if text.lstrip().startswith(tuple(_FORMULA)) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
