"""What a section of a report is made of. A section gives these as data; the page draws them and nothing else.

No part holds markup: whatever a cache, a source or a run says is a text here, and becomes text on the page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gdkd_cache.report.inputs import Inputs

Cell = str | int | float | None


@dataclass(frozen=True, kw_only=True)
class Column:
    """Attributes: title: its heading; format: of its numbers, as `format` takes it (`.1%`, `,d`); "" is text."""

    title: str
    format: str = ""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known, a line each.

    Attributes:
        title: a heading.
        reading: one sentence that says how to read it.
        lines: name to text.
        is_code: whether the texts are commands to type.
    """

    title: str
    reading: str
    lines: Mapping[str, str]
    is_code: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows that a reader can sort.

    Attributes:
        name: of its file, without suffix; of lower-case letters, digits and hyphens, one of its kind in a report.
        title: a heading.
        reading: one sentence that says how to read it.
        columns: at least one.
        rows: as wide as the columns; None is a cell of which nothing is known.
    """

    name: str
    title: str
    reading: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure, with the numbers that it shows.

    Attributes:
        table: these numbers; also the figure's name, title and how to read it.
        figure: drawn with `report/drawing.py`; no axis has a title, as the heading says it.
        described: what a person who cannot see it should know, in a sentence or two of its main numbers.
    """

    table: Table
    figure: "Figure"
    described: str


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Attributes: png: a picture's bytes; captions: lines below it; described: for those who cannot see it."""

    png: bytes
    captions: Sequence[str]
    described: str


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Images beside each other: `rows` of pictures, each with its heading."""

    title: str
    reading: str
    rows: Sequence[tuple[str, Sequence[Picture]]]


Part = Facts | Table | Drawing | Pictures


class Section(Protocol):
    """A section of the report: a module-level object in a file of its own, named in `sections/registry.py`.

    Attributes:
        title: its heading.
        reading: one sentence: what it answers.
    """

    title: str
    reading: str

    def parts(self, inputs: "Inputs") -> Sequence[Part]:
        """What it shows; empty where the inputs hold nothing for it (no `--run`, no `--data`)."""
        ...
