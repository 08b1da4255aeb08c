"""A report as a page: figures in the page's colours, tables with their numbers, pictures that fit its size."""

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from markupsafe import Markup

from gdkd_cache.errors import UsageError
from gdkd_cache.report.base import Cell, Column, Drawing, Part, Picture, Pictures, Table
from gdkd_cache.report.html import rendered
from gdkd_cache.report.pictures import picture_size, shrunk
from gdkd_cache.report.svg import to_svg
from gdkd_cache.texts import shown

MOST_BYTES = 8 * 10**6
"""Of a page."""
UNKNOWN = "\u2013"
"""What stands for a number that nobody knows."""
_LONGEST = 1000
_LONGEST_CELL = 120
_MOST_ROWS = 500
_MOST_NUMBERS = 200
"""Rows of a figure's numbers."""
_FILTERED_ROWS = 12
_SHRINKINGS = 4
_HALF_COLUMNS = 3
"""Tables of so many columns have room beside another part."""


@dataclass(frozen=True, kw_only=True)
class Number:
    """Attributes: name: of one of the numbers that matter; value: as text; reading: what it means, in a few words."""

    name: str
    value: str
    reading: str


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """Attributes: name: what links point to; title, reading: of a section; parts: what it shows."""

    name: str
    title: str
    reading: str
    parts: Sequence[Part]


@dataclass(frozen=True, kw_only=True)
class Page:
    """Attributes: name: of the cache; about: in a line; numbers: that matter; digest: of it; chapters: in order."""

    name: str
    about: str
    numbers: Sequence[Number]
    digest: str
    chapters: Sequence[Chapter]


def page_html(page: Page, most_bytes: int = MOST_BYTES) -> bytes:
    """The page as a file; its pictures are made smaller where they would make it too large.

    Raises:
        UsageError: it is larger than `most_bytes` even with pictures of a few pixels.
    """
    pngs = {id(picture): picture.png for picture in _pictures(page)}
    svgs = {id(part): _drawn(part) for part in _parts(page) if isinstance(part, Drawing)}
    html = _rendered(page, svgs, pngs)
    for _ in range(_SHRINKINGS):
        encoded = sum(map(_encoded_size, pngs.values()))
        if len(html) <= most_bytes or not encoded:
            break
        part = max(most_bytes - (len(html) - encoded), 0) / encoded
        pngs = {key: shrunk(png, part) for key, png in pngs.items()}
        html = _rendered(page, svgs, pngs)
    if len(html) > most_bytes:
        raise UsageError(
            f"the report would have {len(html):,} bytes, and {most_bytes:,} are allowed; report fewer runs or classes"
        )
    return html


def cell_text(value: Cell, column: Column) -> str:
    """A cell as people read it; a dash for what is not known."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return UNKNOWN
    if isinstance(value, str):
        return shown(value, _LONGEST_CELL)
    return format(value, column.format) if column.format else f"{value:,}"


def _parts(page: Page) -> Iterator[Part]:
    return (part for chapter in page.chapters for part in chapter.parts)


def _pictures(page: Page) -> Iterator[Picture]:
    for part in _parts(page):
        if isinstance(part, Pictures):
            for _, row in part.rows:
                yield from row


def _encoded_size(png: bytes) -> int:
    return 4 * -(-len(png) // 3)


def _rendered(page: Page, svgs: Mapping[int, Markup], pngs: Mapping[int, bytes]) -> bytes:
    filters = {
        "kind": lambda part: type(part).__name__,
        "drawn": lambda part: svgs[id(part)],
        "picture": lambda picture: _image(pngs[id(picture)], picture),
        "tabled": _tabled,
        "half": _is_half,
        "capital": lambda text: text[:1].upper() + text[1:],
    }
    return rendered("report", filters, page=page, version=version("gdkd-cache")).encode()


def _drawn(drawing: Drawing) -> Markup:
    return Markup(to_svg(drawing.figure, f"drawn-{drawing.table.name}", on_page=True))


def _image(png: bytes, picture: Picture) -> Markup:
    width, height = picture_size(png)
    data = base64.b64encode(png).decode()
    element = Markup('<img alt="{}" width="{}" height="{}" src="data:image/png;base64,{}">')
    return element.format(shown(picture.described, _LONGEST), width, height, data)


def _tabled(table: Table, of_figure: bool) -> dict[str, Any]:
    """A table's rows, only so many: of each cell its text, the number that it is sorted by, and whether it is one."""
    most = _MOST_NUMBERS if of_figure else _MOST_ROWS
    rows = [
        [
            (cell_text(cell, column), _sorted_by(cell), bool(column.format))
            for cell, column in zip(row, table.columns, strict=True)
        ]
        for row in table.rows[:most]
    ]
    return {"rows": rows, "left_out": len(table.rows) - len(rows), "filtered": len(rows) > _FILTERED_ROWS}


def _sorted_by(cell: Cell) -> str | None:
    return None if cell is None or isinstance(cell, str) or math.isnan(cell) else repr(float(cell))


def _is_half(part: Part) -> bool:
    """Whether a part leaves room for another beside it."""
    return isinstance(part, Drawing) or (isinstance(part, Table) and len(part.columns) <= _HALF_COLUMNS)
