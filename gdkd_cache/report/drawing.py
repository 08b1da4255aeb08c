"""The house style of figures: axes and what is drawn on them; `svg.py` makes text of them.

Colours are a fixed few, each of a contrast of at least 3:1 on white and on the page's dark ground, told apart without
red or green; lines differ in dashes and markers too. A figure has no title and no ground: it lies on the page's.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from gdkd_cache.texts import shown

INK, FAINT, RULE = "#1b1b1f", "#5f6369", "#d5d7dc"
"""Of text and axes, of what matters less, of the grid; a page puts its own in their place."""
SERIES = ("#3b82d6", "#d9730d", "#12946f", "#c2539b", "#8f7a1f", "#808080")

_DASHES: tuple[str | tuple[int, tuple[float, ...]], ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P")
_MOST_MARKERS = 8
_LONGEST, _LONGEST_AXIS, _LONGEST_PANEL = 28, 60, 72
_PANEL = 310  # pixels beside the axis
_LEGEND, _KEY = 374, 52  # pixels of all legend, and of what stands beside each name
_WIDTH, _HEIGHT = 5.2, 3.2  # inches of 72 pixels
_STYLE: Any = {
    "text.parse_math": False,
    "text.usetex": False,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "legend.borderaxespad": 0.0,
    "figure.facecolor": "none",
}


Numbers = Sequence[int | float] | np.ndarray


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line through points, and around it a band.

    Attributes:
        name: for the legend; "" stands in none.
        x, y: float [point]; NaN is a gap.
        low, high: float [point], the band's edges.
    """

    name: str
    x: Numbers
    y: Numbers
    low: Numbers | None = None
    high: Numbers | None = None


def label(text: object, longest: int = _LONGEST) -> str:
    """A text for a figure: of one line, cut where it is long, and the replacement character where none can be shown."""
    return shown(text, longest)


def new_axes(
    *, x: str, y: str, x_format: str = "", y_format: str = "", height: float = _HEIGHT, rows: int = 1
) -> tuple[Figure, list[Axes]]:
    """An empty figure of the report's width.

    Args:
        x, y: what the axes count, in words.
        x_format, y_format: of their ticks' numbers, as `format` takes them (`.0%`), or `%` for percentages of as many
            digits as they need; "" is matplotlib's choice.
        height: in inches, of all rows together.
        rows: of axes, one below the other, that share the x axis.

    Returns:
        The figure, and its axes from the top.
    """
    with _styled():
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        column = [row[0] for row in figure.subplots(rows, 1, sharex=True, squeeze=False)]
        for axes in column:
            axes.tick_params(length=3)
            axes.set_ylabel(shown(y, _LONGEST_AXIS))
            _format(axes, x_format, y_format)
        column[-1].set_xlabel(shown(x, _LONGEST_AXIS))
    return figure, column


def draw_lines(axes: Axes, lines: Sequence[Line]) -> None:
    """Lines with their bands, each of its own colour, dashes and markers."""
    for line, (colour, dashes, marker) in zip(lines, _looks(len(lines)), strict=True):
        every = max(1, -(-len(line.x) // _MOST_MARKERS))
        axes.plot(
            np.asarray(line.x, float),
            np.asarray(line.y, float),
            color=colour,
            linestyle=dashes,
            linewidth=1.8,
            marker=marker,
            markersize=4.5,
            markevery=every,
            label=_in_legend(line.name),
        )
        if line.low is not None and line.high is not None:
            axes.fill_between(
                np.asarray(line.x, float),
                np.asarray(line.low, float),
                np.asarray(line.high, float),
                color=colour,
                alpha=0.22,
                linewidth=0,
            )


def draw_steps(axes: Axes, edges: np.ndarray, heights: Sequence[tuple[str, np.ndarray]]) -> None:
    """Histograms by name, as outlines over a common float [edge]; heights are float [edge - 1]."""
    for (name, values), (colour, dashes, _) in zip(heights, _looks(len(heights)), strict=True):
        axes.stairs(values, edges, color=colour, linestyle=dashes, linewidth=1.8, label=_in_legend(name))
        axes.stairs(values, edges, color=colour, fill=True, alpha=0.15, linewidth=0)


def draw_counts(axes: Axes, numbers: Numbers, heights: np.ndarray) -> None:
    """A bar for each of some whole numbers that follow each other, between its neighbours."""
    axes.stairs(heights, np.append(numbers, numbers[-1] + 1) - 0.5, color=SERIES[0], fill=True, alpha=0.15, linewidth=0)
    axes.stairs(heights, np.append(numbers, numbers[-1] + 1) - 0.5, color=SERIES[0], linewidth=1.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(numbers[0] - 0.5, numbers[-1] + 0.5)
    axes.set_ylim(bottom=0)


def draw_profile(axes: Axes, values: np.ndarray, own: int | None = None) -> None:
    """A bar for each of many classes, by their numbers, in one outline; the bar of one of them in another colour."""
    edges = np.arange(len(values) + 1) - 0.5
    axes.stairs(values, edges, color=SERIES[0], fill=True, linewidth=0)
    axes.stairs(values, edges, color=SERIES[0], linewidth=0.8)
    if own is not None:
        axes.stairs(values[own : own + 1], edges[own : own + 2], color=SERIES[1], fill=True, linewidth=1.6)
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.set_ylim(bottom=0)


def add_panel_name(axes: Axes, text: str) -> None:
    """A line above one of several axes of a figure."""
    line = shown(text, _LONGEST_PANEL)
    while _width(line, 9) > _PANEL:
        line = f"{line[:-2]}…"
    with _styled():
        axes.set_title(line, loc="left", fontsize=9, pad=3)


def draw_bars(axes: Axes, names: Sequence[str], values: Numbers, colour: str = SERIES[0]) -> None:
    """Bars from the left, the first one on top, each with its name."""
    places = np.arange(len(names))
    axes.barh(places, np.asarray(values, float), height=0.72, color=colour)
    axes.set_yticks(places, [label(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def draw_reference(axes: Axes, x: Numbers, y: Numbers, name: str = "") -> None:
    """A thin dashed line that other things are compared with."""
    axes.plot(x, y, color=FAINT, linewidth=1.0, linestyle=(0, (4, 3)), label=_in_legend(name), zorder=1)


def set_logarithmic(axes: Axes, which: str) -> None:
    """Let the `x` or `y` axis be logarithmic, with numbers at its ticks; called when all is drawn."""
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 200 * low else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def add_legend(figure: Figure, axes: Axes) -> None:
    """The names of what is drawn on some axes, above them all; nothing where nothing has a name."""
    handles, names = axes.get_legend_handles_labels()
    if names:
        longest = max(_width(name, 10) for name in names)
        columns = max(1, min(3, int(_LEGEND / (longest + _KEY))))
        with _styled():
            figure.legend(handles, names, loc="outside upper left", ncols=min(columns, len(names)))


def _width(text: str, size: int) -> float:
    """How wide a line is in pixels, about: a letter that the font lacks counts as a square."""
    font = get_font(findfont("DejaVu Sans"))
    font.set_size(size, 72)
    indices = map(font.get_char_index, map(ord, text))
    return sum(font.load_glyph(index).linearHoriAdvance / 65536 if index else size for index in indices)


def _looks(number: int) -> Iterator[tuple[str, str | tuple[int, tuple[float, ...]], str]]:
    return islice(zip(cycle(SERIES), cycle(_DASHES), cycle(_MARKERS), strict=False), number)


def _in_legend(name: str) -> str:
    return label(name) if name else "_"  # which matplotlib leaves out of legends


def _format(axes: Axes, x_format: str, y_format: str) -> None:
    for axis, form in ((axes.xaxis, x_format), (axes.yaxis, y_format)):
        if form:
            axis.set_major_formatter(FuncFormatter(lambda value, _, form=form: _formatted(value, form)))
            axis.set_minor_formatter(NullFormatter())


def _formatted(value: float, form: str) -> str:
    return f"{100 * value:.3g}%" if form == "%" else format(value, form)


@contextmanager
def _styled() -> Iterator[None]:
    with mpl.rc_context(_STYLE):
        yield
