"""The text files that datasets list their images in."""

from pathlib import Path, PurePosixPath

from gdkd_cache.errors import SourceError


def read_table(path: Path, columns: int, separator: str | None = None) -> list[list[str]]:
    """The first columns of every line that is not blank; fields are cut at `separator`, None at white space.

    Raises:
        SourceError: no such file, no line, a line with fewer columns, or no UTF-8.
    """
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise SourceError(f"{path} cannot be read: {reason}; the dataset must lie there as it was unpacked") from None
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


def listed_path(folder: Path, name: str, listed_in: Path) -> Path:
    """The path of a name that a list holds, which must lie inside the folder.

    Raises:
        SourceError: it leads out of the folder.
    """
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise SourceError(f"{listed_in}: {name[:80]!r} leads out of {folder}; copy the dataset again")
    return folder / name
