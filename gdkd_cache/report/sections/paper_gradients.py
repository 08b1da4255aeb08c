"""The paper's Fig. 3: how strongly each part of the loss pulls at the logits outside the teacher's top classes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gdkd_cache.losses.base import ForeignLoss, loss_from_json
from gdkd_cache.losses.levels import NAMES
from gdkd_cache.report.base import Cell, Column, Drawing, Table
from gdkd_cache.report.drawing import (
    Line,
    add_legend,
    draw_lines,
    draw_reference,
    draw_steps,
    new_axes,
    set_logarithmic,
)
from gdkd_cache.report.inputs import Inputs
from gdkd_cache.report.numbers.levels import pulls_at_uniform
from gdkd_cache.report.numbers.series import spread_evenly
from gdkd_cache.report.sections.runs import group_name
from gdkd_cache.training.gradients import QUANTILES
from gdkd_cache.training.gradients import TOP as DEFAULT_TOP
from gdkd_cache.training.records.runs import Run, group_runs

_MOST_RUNS = 4
_MOST_EPOCHS = 200
_BINS = 40
_LARGEST = 1e12
_WORDS = {"top_level": "top level", "other": "inside the rest", "kd": "plain KD"}


def start_drawings(inputs: Inputs) -> Iterator[Drawing]:
    """The magnitudes of gradients at a student that knows nothing: of the cache alone."""
    temperature, num_classes = inputs.options.temperature, inputs.cache.num_classes
    declared = [loss_from_json(one) for one in inputs.cache.manifest.identity.request.losses]
    tops = [loss.num_top for loss in declared if not isinstance(loss, ForeignLoss) and loss.num_top]
    k = min(tops[0] if tops else DEFAULT_TOP, num_classes - 1)
    found = pulls_at_uniform(inputs.sample.logits[0], k, temperature)
    values = {name: magnitudes[magnitudes > 0] for name, magnitudes in found.magnitudes.items()}
    values = {name: own for name, own in values.items() if len(own)}
    if not values:
        return
    low = min(float(np.quantile(own, 0.002)) for own in values.values())
    high = max(float(own.max()) for own in values.values())
    edges = np.geomspace(low, max(high, low * 1.01), _BINS + 1)
    figure, (axes,) = new_axes(x="magnitude of the gradient", y="share of logits", y_format="%")
    heights = [
        (_WORDS[name], np.histogram(np.clip(own, edges[0], edges[-1]), edges)[0] / len(own))
        for name, own in values.items()
    ]
    draw_steps(axes, edges, heights)
    axes.set_ylim(bottom=0)
    set_logarithmic(axes, "x")
    add_legend(figure, axes)
    medians = {name: float(np.median(own)) for name, own in values.items()}
    yield Drawing(
        table=Table(
            name="gradients-at-the-start",
            title="Gradients of the logits outside the top classes, at the start",
            reading="How strongly each part of the loss pulls at the logits outside the teacher's top "
            f"{k} classes, of a student whose logits are all alike, at T = {temperature:g}. Plain KD is the top level "
            "plus 1 - p_top times what is inside the rest; GDKD gives that a weight of its own, so that it is "
            f"1 / (1 - p_top) times as strong to begin with: {found.factor:.3g} times at the median.",
            columns=[Column(title="part"), *(Column(title=f"{share:.0%}", format=".3g") for share in QUANTILES)],
            rows=[
                (_WORDS[name], *(float(value) for value in np.quantile(own, QUANTILES))) for name, own in values.items()
            ],
        ),
        figure=figure,
        described="Medians: " + ", ".join(f"{_WORDS[name]} {median:.3g}" for name, median in medians.items()) + ".",
    )


def epoch_drawings(inputs: Inputs) -> Iterator[Drawing]:
    """The magnitudes of gradients over the epochs of trainings, of the first of each group of seeds."""
    groups = [(number, group, _told(group[0])) for number, group in enumerate(group_runs(inputs.runs), 1)]
    for number, group, lines in [one for one in groups if one[2]][:_MOST_RUNS]:
        yield _over_epochs(lines, group_name(number, group), number)


def _told(run: Run) -> list[Mapping[str, Any]]:
    """The epochs that tell of gradients, as they should: a file may say anything."""
    lines = [line for line in run.lines if "gradients" in line and _is_sound(line["epoch"], **line["gradients"])]
    return [lines[place] for place in spread_evenly(len(lines), _MOST_EPOCHS)]


def _is_sound(
    epoch: int, *, k: int, temperature: int | float, factor: int | float, **levels: Sequence[int | float]
) -> bool:
    numbers = all(0 < value <= _LARGEST for value in (epoch, k, temperature)) and 1 <= factor <= _LARGEST
    return numbers and all(
        len(own) == len(QUANTILES) and list(own) == sorted(own) and own[0] >= 0 and own[-1] <= _LARGEST
        for own in levels.values()
    )


def _over_epochs(lines: Sequence[Mapping[str, Any]], name: str, number: int) -> Drawing:
    epochs = np.array([line["epoch"] for line in lines], float)
    values = {level: np.array([line["gradients"][level] for line in lines], float) for level in NAMES}
    factors = np.array([line["gradients"]["factor"] for line in lines], float)
    low, middle, high = (QUANTILES.index(share) for share in (0.25, 0.5, 0.75))
    figure, (axes,) = new_axes(x="epoch", y="magnitude of the gradient", height=3.6)
    drawn = [
        Line(
            name=_WORDS[level],
            x=epochs,
            y=_above_zero(own[:, middle]),
            low=_above_zero(own[:, low]),
            high=_above_zero(own[:, high]),
        )
        for level, own in values.items()
    ]
    draw_lines(axes, drawn)
    draw_reference(
        axes, epochs.tolist(), (_above_zero(values["kd"][:, middle]) * factors).tolist(), "plain KD / (1 - p_top)"
    )
    if any(np.isfinite(line.y).any() for line in drawn):
        set_logarithmic(axes, "y")
    add_legend(figure, axes)
    last = {level: float(own[-1, middle]) for level, own in values.items()}
    top, temperature = (lines[-1]["gradients"][key] for key in ("k", "temperature"))
    rows: list[tuple[Cell, ...]] = [
        (int(epoch), _WORDS[level], *(float(value) for value in own[place]))
        for place, epoch in enumerate(epochs)
        for level, own in values.items()
    ]
    return Drawing(
        table=Table(
            name=f"figure-3-gradients-{number}",
            title=f"Gradients over the epochs: {name} (Fig. 3)",
            reading=f"How strongly each part of the loss pulls outside the teacher's top {top} classes, at T = "
            f"{temperature:g} and weights of 1: the median, and a band from 25% to 75%. The thin dashed line is plain "
            f"KD times 1 / (1 - p_top), {factors[-1]:.3g} at the median: so much stronger is GDKD inside the rest, in "
            "theory, once student and teacher agree on the top level.",
            columns=[
                Column(title="epoch", format="d"),
                Column(title="part"),
                *(Column(title=f"{share:.0%}", format=".3g") for share in QUANTILES),
            ],
            rows=rows,
        ),
        figure=figure,
        described="Medians of the last epoch: "
        + ", ".join(f"{_WORDS[level]} {value:.3g}" for level, value in last.items())
        + ".",
    )


def _above_zero(values: np.ndarray) -> np.ndarray:
    """The same with NaN where a logarithmic axis has no place."""
    return np.where(values > 0, values, np.nan)
