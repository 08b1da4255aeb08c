"""How trainings go from epoch to epoch in agreement with the teacher and in accuracy: fidelity and generalisation."""

from collections.abc import Sequence

import numpy as np

from gdkd_cache.report.base import Column, Drawing, Table
from gdkd_cache.report.drawing import Line, add_legend, draw_lines, new_axes
from gdkd_cache.report.numbers.series import band, metric, spread_evenly
from gdkd_cache.training.records.runs import Run

MOST_LINES = 6
"""In a figure: as many as there are colours."""
_MOST_POINTS = 200


def agreement_and_accuracy(groups: Sequence[Sequence[Run]], names: Sequence[str]) -> Drawing | None:
    """A path for each group, from its first epoch to its last; None where no training has a teacher."""
    lines, rows = [], []
    for name, group in zip(names, groups, strict=True):
        agreement, accuracy = (band([metric(run.lines, one) for run in group])[0] for one in ("agreement", "accuracy"))
        said = np.flatnonzero(np.isfinite(agreement) & np.isfinite(accuracy))
        if len(said):
            epochs = said[spread_evenly(len(said), _MOST_POINTS)]
            lines.append(Line(name=name, x=agreement[epochs], y=accuracy[epochs]))
            rows += [(name, int(epoch) + 1, float(agreement[epoch]), float(accuracy[epoch])) for epoch in epochs]
    if not lines:
        return None
    table = Table(
        name="runs-agreement-accuracy",
        title="Agreement and accuracy",
        reading="Epoch by epoch: agreement with the teacher on training views, to the right, and accuracy on held-out "
        "images, upwards. A path that goes to the right and down follows its teacher's errors (teacher hacking).",
        columns=(
            Column(title="Trainings"),
            Column(title="Epoch", format=",d"),
            Column(title="Agreement", format=".1%"),
            Column(title="Accuracy", format=".1%"),
        ),
        rows=rows,
    )
    figure, (axes,) = new_axes(x="agreement", y="accuracy", x_format=".0%", y_format=".0%")
    draw_lines(axes, lines[:MOST_LINES])
    add_legend(figure, axes)
    ends = [f"{line.name}: {line.x[-1]:.1%} and {line.y[-1]:.1%}" for line in lines[:MOST_LINES]]
    return Drawing(table=table, figure=figure, described=f"At the end, {'; '.join(ends)}.")
