"""Figures of how sure a teacher is, and whether it may be."""

from itertools import pairwise

import numpy as np

from gdkd_cache.report.base import Column, Drawing, Table
from gdkd_cache.report.drawing import add_legend, draw_counts, draw_reference, draw_steps, new_axes
from gdkd_cache.report.numbers.calibration import Reliability, shares
from gdkd_cache.report.numbers.said import Said, most_said

_BINS = 20


def reliability_drawing(found: Reliability) -> Drawing:
    filled = found.counts > 0
    share = found.counts / max(found.counts.sum(), 1)
    figure, (axes,) = new_axes(x="confidence", y="share", x_format="%", y_format="%")
    draw_reference(axes, [0, 1], [0, 1], "right as often as it says")
    draw_steps(axes, found.edges, [("how often right", np.nan_to_num(found.accuracy)), ("share of views", share)])
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    add_legend(figure, axes)
    rows = [
        (float(low), float(high), int(count), float(said), float(right))
        for low, high, count, said, right in zip(
            found.edges[:-1], found.edges[1:], found.counts, found.confidence, found.accuracy, strict=True
        )
        if count
    ]
    too = "more" if (found.accuracy - found.confidence)[filled] @ found.counts[filled] < 0 else "less"
    return Drawing(
        table=Table(
            name="teacher-reliability",
            title="Reliability",
            reading="Where the steps lie below the dashed line, the teacher is more sure than it is right.",
            columns=[
                Column(title="confidence above", format=".1%"),
                Column(title="up to", format=".1%"),
                Column(title="views", format=",d"),
                Column(title="mean confidence", format=".1%"),
                Column(title="right", format=".1%"),
            ],
            rows=rows,
        ),
        figure=figure,
        described=f"Calibration error {found.error:.3f}: on the whole the teacher is {too} sure than it is right.",
    )


def sureness_drawings(said: Said, is_right: np.ndarray | None, num_classes: int) -> list[Drawing]:
    """Histograms of confidence and entropy: of right and wrong views apart, where that is known."""
    confidence = _histogram(
        said.confidence,
        is_right,
        np.linspace(0, 1, _BINS + 1),
        name="teacher-confidence",
        title="How sure it is",
        reading="Views by the probability of the first class: a teacher that is sure of all has them all on the right.",
        unit="confidence",
        form="%",
    )
    entropy = _histogram(
        said.entropy,
        is_right,
        np.linspace(0, np.log(num_classes), _BINS + 1),
        name="teacher-entropy",
        title="How spread its probabilities are",
        reading="Views by entropy: 0 is one class alone, the right end is all classes alike.",
        unit="entropy, nats",
        form=".2g",
    )
    return [confidence, entropy]


def _histogram(
    values: np.ndarray,
    is_right: np.ndarray | None,
    edges: np.ndarray,
    *,
    name: str,
    title: str,
    reading: str,
    unit: str,
    form: str,
) -> Drawing:
    heights = [("views", shares(values, edges, values.size))]
    if is_right is not None:
        heights = [
            (kind, shares(values[which], edges, values.size))
            for kind, which in (("right", is_right), ("wrong", ~is_right))
        ]
    figure, (axes,) = new_axes(x=unit, y="share of views", x_format=form, y_format="%")
    draw_steps(axes, edges, heights)
    axes.set_xlim(float(edges[0]), float(edges[-1]))
    axes.set_ylim(bottom=0)
    if is_right is not None:
        add_legend(figure, axes)
    tick = ".0%" if form == "%" else ".3f"
    return Drawing(
        table=Table(
            name=name,
            title=title,
            reading=reading,
            columns=[
                Column(title="from", format=tick),
                Column(title="to", format=tick),
                *(
                    Column(title=f"share of views, {kind}" if is_right is not None else kind, format=".2%")
                    for kind, _ in heights
                ),
            ],
            rows=[
                (float(low), float(high), *(float(values[place]) for _, values in heights))
                for place, (low, high) in enumerate(pairwise(edges))
            ],
        ),
        figure=figure,
        described=f"The median is {format(float(np.median(values)), tick)}.",
    )


def agreement_drawing(said: Said) -> Drawing:
    """Images by how far their views agree; of two views or more."""
    views = len(said.first)
    most = most_said(said.first)
    numbers = np.arange(int(most.min()), views + 1)
    heights = np.bincount(most, minlength=views + 1)[numbers] / len(most)
    figure, (axes,) = new_axes(
        x=f"of {views} views: how many say the most frequent class", y="share of images", y_format="%"
    )
    draw_counts(axes, numbers, heights)
    return Drawing(
        table=Table(
            name="teacher-agreement",
            title="Do the views of an image agree?",
            reading="Images by how many of their views have the same first class; on the right all views agree.",
            columns=[Column(title="views that agree", format="d"), Column(title="share of images", format=".2%")],
            rows=[(number, height) for number, height in zip(numbers.tolist(), heights.tolist(), strict=True)],
        ),
        figure=figure,
        described=(
            f"{(said.agreement == 1).mean():.1%} of images have the same first class in all {views} views; "
            f"{said.agreement.mean():.1%} of pairs of views agree."
        ),
    )
