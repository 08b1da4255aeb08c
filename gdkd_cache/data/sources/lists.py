"""The text files that datasets list their images in."""

from pathlib import Path, PurePosixPath

from gdkd_cache.errors import SourceError
from gdkd_cache.files import read_bounded

_TABLE_BYTES = 2**23
"""Three times the largest of those that are read."""


def read_table(path: Path, columns: int, separator: str | None = None) -> list[list[str]]:
    """The first columns of every line that is not blank; fields are cut at `separator`, None at white space.

    Raises:
        SourceError: as `read_list`; no line, or a line with fewer columns.
    """
    try:
        lines = read_list(path, _TABLE_BYTES).split("\n")
    except SourceError as error:
        raise SourceError(f"{error}; the dataset must lie there as it was unpacked") from None
    table = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            fields = line.strip().split(separator)
            if len(fields) < columns:
                raise SourceError(f"{path}, line {number}: {line[:80]!r} must have {columns} fields; copy it again")
            table.append(fields[:columns])
    if not table:
        raise SourceError(f"{path} is empty; copy it again")
    return table


def read_list(path: Path, limit: int) -> str:
    """A text file of at most so many bytes, lines ended by `\\n`.

    Raises:
        SourceError: no such file, no plain one, too large, or no UTF-8.
        OSError: it cannot be read.
    """
    try:
        text = read_bounded(path, limit, "list", SourceError).decode()
    except UnicodeDecodeError as error:
        raise SourceError(f"list {path} is no text in UTF-8: byte {error.start:,} is no part of it") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def listed_path(folder: Path, name: str, listed_in: Path) -> Path:
    """The path of a name that a list holds, which must lie inside the folder.

    Raises:
        SourceError: it leads out of the folder.
    """
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise SourceError(f"{listed_in}: {name[:80]!r} leads out of {folder}; copy the dataset again")
    return folder / name
