"""The page of a report: one file under a strict policy; whatever a text holds, it stays text; it is never too large."""

import base64
import csv
import hashlib
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hostile_names import HOSTILE_NAMES

from gdkd_cache.errors import UsageError
from gdkd_cache.report.base import Cell, Column, Drawing, Facts, Part, Picture, Pictures, Table
from gdkd_cache.report.drawing import Line, add_legend, draw_bars, draw_lines, new_axes
from gdkd_cache.report.files import part_files, table_csv
from gdkd_cache.report.page import UNKNOWN, Chapter, Number, Page, cell_text, page_html
from gdkd_cache.report.pictures import picture_size, shrunk, to_picture
from gdkd_cache.texts import shown


class _Read(HTMLParser):
    """What a browser would find: tags with their attributes, and the text outside of script and style."""

    def __init__(self, html: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.held: dict[str, str] = {}
        self._within = ""
        self.feed(html.decode())
        self.text = "\n".join(self.texts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._within = tag

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within in ("script", "style"):
            self.held[self._within] = data
        else:
            self.texts.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def _table(rows: list[tuple[Cell, ...]], name: str = "table") -> Table:
    columns = (Column(title="Name"), Column(title="Value", format=".1%"))
    return Table(name=name, title="A table", reading="Read it.", columns=columns, rows=rows)


def _page(*parts: Part, name: str = "c.zarr") -> Page:
    chapter = Chapter(name="one", title="One", reading="Of one.", parts=parts)
    numbers = [Number(name="Bytes", value="12.5", reading="of a view")]
    return Page(name=name, about="About it", numbers=numbers, digest="sha256:0", chapters=[chapter])


def _picture(side: int = 64, seed: int = 0) -> Picture:
    image = np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)
    return to_picture(image, ["a caption"], "noise")


def test_the_policy_lets_nothing_else_in() -> None:
    """It stands first, names the one style and the one script by their hashes, and nothing on the page is fetched."""
    read = _Read(page_html(_page(_table([("a", 0.5)]), Pictures(title="P", reading="R.", rows=[("r", [_picture()])]))))
    names = [name for name, _ in read.tags]
    assert names[:4] == ["html", "head", "meta", "meta"]
    policy = read.named("meta")[1]["content"]
    assert policy is not None
    for kind in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(read.held[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in policy
    assert (names.count("script"), names.count("style")) == (1, 1)
    assert not {"link", "iframe", "object", "embed", "base", "form"} & set(names)
    for _, attributes in read.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/png;base64,")), value


def test_hostile_texts_stay_texts() -> None:
    """In every place of a page; a megabyte is cut, and what turns or hides text is shown as what it is."""
    drawings = []
    for number, name in enumerate(HOSTILE_NAMES):
        figure, (axes,) = new_axes(x=name[:40], y="y")
        draw_lines(axes, [Line(name=name, x=[0.0, 1.0], y=[0.0, 1.0])])
        add_legend(figure, axes)
        table = Table(name=f"drawn-{number}", title=name, reading=name, columns=[Column(title=name)], rows=[(name,)])
        drawings.append(Drawing(table=table, figure=figure, described=name))
    figure, (axes,) = new_axes(x="", y="")
    draw_bars(axes, HOSTILE_NAMES, np.ones(len(HOSTILE_NAMES)))
    drawings.append(Drawing(table=_table([("a", 1.0)], "bars"), figure=figure, described="bars"))
    picture = _picture()
    everywhere = Picture(png=picture.png, captions=HOSTILE_NAMES, described=HOSTILE_NAMES[4])
    parts = [
        Facts(
            title="F", reading="R.", lines=dict.fromkeys(HOSTILE_NAMES, "value") | {"all": " ".join(HOSTILE_NAMES[:4])}
        ),
        Facts(title="C", reading="R.", lines={str(i): name for i, name in enumerate(HOSTILE_NAMES)}, is_code=True),
        _table([(name, 0.5) for name in HOSTILE_NAMES]),
        Pictures(
            title=HOSTILE_NAMES[0], reading=HOSTILE_NAMES[1], rows=[(name, [everywhere]) for name in HOSTILE_NAMES]
        ),
        *drawings,
    ]
    html = page_html(_page(*parts, name=HOSTILE_NAMES[2]))
    assert len(html) < 2 * 10**6
    read = _Read(html)
    names = {tag for tag, _ in read.tags}
    assert not names & {"b", "i", "img/src", "svg/onload"}
    assert sum(tag == "script" for tag, _ in read.tags) == 1
    assert all(attributes["src"].startswith("data:image/png") for attributes in read.named("img"))  # pyright: ignore[reportOptionalMemberAccess]
    assert not any(key.startswith("on") or key == "autofocus" for _, attributes in read.tags for key in attributes)
    for name in HOSTILE_NAMES:
        assert shown(name, 120) in read.texts, name[:60]
    assert "49" not in read.text
    assert not set(read.text) & set("\u202e\u202c\u2067\u2069\u200b\ufeff\x00\x07\x1b")


def test_numbers_are_read_by_people_and_sorted_by_machines() -> None:
    """And a table that is too long says that there is more, and where."""
    rows: list[tuple[Cell, ...]] = [("half", 0.5), ("none", None), ("nan", float("nan")), ("words", "none")]
    html = page_html(_page(_table(rows))).decode()
    assert re.search(r'<td class="number" data-number="0.5">50.0%</td>', html)
    assert html.count(f">{UNKNOWN}</td>") == 2
    assert cell_text(1234567, Column(title="n", format=",d")) == "1,234,567"
    long = page_html(_page(_table([(str(i), i / 1000) for i in range(1000)]))).decode()
    assert "The first 500 rows; 500 more are in the file that --figures writes." in long
    assert "data-filtered" in long
    assert "data-filtered" not in html


def test_pictures_shrink_where_the_page_would_be_too_large() -> None:
    pictures = Pictures(title="P", reading="R.", rows=[("r", [_picture(128, seed) for seed in range(8)])])
    whole = page_html(_page(pictures))
    bound = len(whole) - 200_000
    small = page_html(_page(pictures), most_bytes=bound)
    assert 0.5 * bound < len(small) <= bound
    assert len(_Read(small).named("img")) == 8
    figure, (axes,) = new_axes(x="", y="")
    draw_lines(axes, [Line(name="", x=np.arange(30_000), y=np.random.default_rng(0).random(30_000))])
    drawing = Drawing(table=_table([("a", 0.1)]), figure=figure, described="much")
    with pytest.raises(UsageError, match="bytes, and 100,000 are allowed"):
        page_html(_page(drawing, pictures), most_bytes=100_000)


@pytest.mark.parametrize(("part", "size"), [(0.25, (57, 28)), (0.0, (8, 8)), (0.9, (109, 54))])
def test_shrunk(part: float, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 128, 3)).astype(np.uint8)
    picture = to_picture(image, [], "noise")
    assert picture_size(picture.png) == (128, 64)
    assert picture_size(shrunk(picture.png, part)) == size


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("=1+1", "'=1+1"), ("+x", "'+x"), ("-x", "'-x"), ("@SUM(A1)", "'@SUM(A1)"), (" =1+1", "' =1+1"),
        ("\uff1d1+1", "'\uff1d1+1"), ("\t=1", "\ufffd=1"), ("-1.5", "-1.5"), ("+3", "+3"), ("a=b", "a=b"), ("", ""),
        (-0.25, "-0.25"), (-3, "-3"), (1e-9, "1e-09"), (None, ""), (float("nan"), ""), ("two\nlines", "two\ufffdlines"),
        ('quote"d, with comma', 'quote"d, with comma'),
    ],
)  # fmt: skip
def test_csv_cells(cell: Cell, written: str) -> None:
    """No cell is a formula to a spreadsheet, and numbers stay what they are."""
    table = Table(
        name="t", title="T", reading="R.", columns=[Column(title="=a"), Column(title="b")], rows=[(cell, "x")]
    )
    assert list(csv.reader(io.StringIO(table_csv(table).decode()))) == [["'=a", "b"], [written, "x"]]


def test_files() -> None:
    figure, (axes,) = new_axes(x="x", y="y")
    draw_lines(axes, [Line(name="", x=[0.0, 1.0], y=[0.0, 1.0])])
    drawing = Drawing(table=_table([("a", 0.1)], "drawn"), figure=figure, described="a line")
    files = part_files([drawing, _table([("b", 0.2)], "told"), Facts(title="F", reading="R.", lines={})])
    assert list(files) == ["drawn.svg", "drawn.csv", "told.csv"]
    assert files["told.csv"] == b"Name,Value\nb,0.2\n"
    assert b"<svg" in files["drawn.svg"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain", "plain"),
        ("a\u202eb\nc\x00", "a\ufffdb\ufffdc\ufffd"),
        ("x" * 30, "x" * 19 + "…"),
        ("\ud800", "\ufffd"),
        (7, "7"),
    ],
)
def test_shown(text: object, line: str) -> None:
    assert shown(text, 20) == line
