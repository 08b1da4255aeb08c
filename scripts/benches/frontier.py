"""Bytes against gradient error: a table, and a drawing with a panel for each loss."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

_MARKERS = "sD^vPX*<>ph"
_OURS = "#1f5fbf"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One way to keep the logits.

    Attributes:
        name: which.
        error: its gradient error over all views and rows.
        bytes: a view, of everything on disk.
        amortised: of a part of a large cache, whose tables are fitted as for 1.28 M rows in 40 views and spread over
            them, keys and labels over 40.
        fixed: what of `bytes` does not grow with the views: tables, keys, labels and metadata; None for records.
        entropy: order-0, of the integers that such a part stores; None where nothing is quantised.
    """

    name: str
    error: float
    bytes: float
    amortised: float
    fixed: float | None = None
    entropy: float | None = None


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """What one loss sees.

    Attributes:
        loss: its spec.
        ours: caches of several targets.
        others: caches of codecs by name.
        theirs: the layouts of other tools.
    """

    loss: str
    ours: Sequence[Point]
    others: Sequence[Point]
    theirs: Sequence[Point]

    def least(self, error: float) -> Point:
        """The smallest cache that errs no more than that; where none does, the most faithful."""
        points = [*self.ours, *self.others]
        good = [point for point in points if point.error <= error]
        return min(good, key=lambda point: point.bytes) if good else min(points, key=lambda point: point.error)

    def table(self) -> Iterator[str]:
        """Lines of Markdown."""
        yield f"| {self.loss} | gradient error | bytes a view | amortised | fixed part | entropy |"
        yield "|---|---|---|---|---|---|"
        for point in [*self.ours, *self.others, *sorted(self.theirs, key=lambda point: point.error)]:
            fixed, entropy = ("" if value is None else f"{value:.1f}" for value in (point.fixed, point.entropy))
            sizes = f"{point.bytes:.1f} | {point.amortised:.1f} | {fixed} | {entropy}"
            yield f"| {point.name} | {point.error:.3f} | {sizes} |"


def draw(path: Path, title: str, frontiers: Sequence[Frontier]) -> None:
    """Draw a panel for each loss, as SVG with a background of its own."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    fonts = ["DejaVu Sans", "Arial", "Helvetica"]
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "frontier", "font.sans-serif": fonts, "font.size": 9}):
        drawing = Figure((10.5, 4.6), layout="constrained", facecolor="white")
        panels = drawing.subplots(1, len(frontiers), sharey=True, squeeze=False)[0]
        shown: dict[str, Line2D] = {}
        for axes, frontier in zip(panels, frontiers, strict=True):
            shown = _panel(axes, frontier)
        panels[0].set_ylabel("bytes a view")
        drawing.suptitle(title)
        drawing.legend([*shown.values()], [*shown], loc="outside right upper", frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing.savefig(path, metadata={"Date": None})


def _panel(axes: "Axes", frontier: Frontier) -> "dict[str, Line2D]":
    """Draw a loss's points, and give what stands for each in the legend."""
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    ordered = sorted(frontier.ours, key=lambda point: point.error)
    errors = [point.error for point in ordered]
    shown: dict[str, Line2D] = {}
    for name, style, sizes in (
        ("gdkd-cache, amortised", "o-", [point.amortised for point in ordered]),
        ("gdkd-cache, these rows alone", "o:", [point.bytes for point in ordered]),
    ):
        (shown[name],) = axes.plot(errors, sizes, style, color=_OURS, markersize=4)
    for number, point in enumerate(frontier.theirs):
        marker = _MARKERS[number % len(_MARKERS)]
        (shown[point.name],) = axes.plot(
            point.error, point.bytes, marker, color=f"C{1 + number % 9}", markersize=7, markeredgecolor="black"
        )
    axes.set(xscale="log", yscale="log", xlabel="gradient error", title=frontier.loss)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.minorticks_off()
    axes.grid(visible=True, alpha=0.4)
    return shown
