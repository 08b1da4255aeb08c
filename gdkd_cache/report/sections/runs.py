"""Trainings: what they reached and how, seeds of the same options together."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

from gdkd_cache.report.base import Cell, Column, Drawing, Part, Table
from gdkd_cache.report.drawing import Line, add_legend, draw_lines, draw_reference, new_axes
from gdkd_cache.report.inputs import Inputs
from gdkd_cache.report.numbers.series import band, metric, spread_evenly
from gdkd_cache.report.sections.runs_agreement import MOST_LINES, agreement_and_accuracy
from gdkd_cache.training.records.runs import Run, Spread, differences, group_runs

_MOST_POINTS = 200


class _Runs:
    title = "Trainings"
    reading = (
        "What students reached. Trainings that differ in their seed alone are one line: the mean over seeds, and "
        "around it a band of one standard deviation."
    )

    def parts(self, inputs: Inputs) -> Sequence[Part]:
        return list(_parts(inputs)) if inputs.runs else []


RUNS = _Runs()


@dataclass(frozen=True, kw_only=True)
class _Curve:
    """A figure of one metric over the epochs.

    Attributes:
        metric: its name in `metrics.jsonl`.
        name: of the figure's files.
        title, reading: for people.
        axis: what its values are.
        format, ticks: of the values, and at the axis.
    """

    metric: str
    name: str
    title: str
    reading: str
    axis: str
    format: str
    ticks: str


_CURVES = (
    _Curve(
        metric="accuracy",
        name="runs-accuracy",
        title="Accuracy over the epochs",
        reading="Top-1 on held-out images after each epoch; higher is better.",
        axis="accuracy",
        format=".1%",
        ticks=".0%",
    ),
    _Curve(
        metric="mean_iou",
        name="runs-mean-iou",
        title="Mean IoU over the epochs",
        reading="Intersection over union of pixels on held-out images after each epoch, the mean over classes; higher "
        "is better.",
        axis="mean IoU",
        format=".1%",
        ticks=".0%",
    ),
    _Curve(
        metric="pixel_accuracy",
        name="runs-pixel-accuracy",
        title="Pixel accuracy over the epochs",
        reading="How often a pixel's likeliest class is right, on held-out images after each epoch; higher is better.",
        axis="pixel accuracy",
        format=".1%",
        ticks=".0%",
    ),
    _Curve(
        metric="loss",
        name="runs-training-loss",
        title="Training loss",
        reading="What is minimised, the mean of each epoch; lines of different losses cannot be compared in height.",
        axis="loss",
        format=".3g",
        ticks=".3g",
    ),
    _Curve(
        metric="eval_loss",
        name="runs-held-out-loss",
        title="Loss on held-out images",
        reading="Cross-entropy in nats, the same for all; lower is better, and a rise means that it is too sure.",
        axis="cross-entropy, nats",
        format=".3g",
        ticks=".3g",
    ),
    _Curve(
        metric="calibration_error",
        name="runs-calibration",
        title="Calibration",
        reading="How far a student's confidence is from how often it is right, on held-out images; the dashed line is "
        "the teacher's; lower is better.",
        axis="calibration error",
        format=".3f",
        ticks=".2g",
    ),
    _Curve(
        metric="agreement",
        name="runs-agreement",
        title="Agreement with the teacher",
        reading="How often the student's likeliest class on a training view is the teacher's.",
        axis="agreement",
        format=".1%",
        ticks=".0%",
    ),
)


def _parts(inputs: Inputs) -> Iterator[Part]:
    groups = group_runs(inputs.runs)
    differing = differences(groups)
    names = [group_name(number, group) for number, group in enumerate(groups, 1)]
    yield _results(inputs, groups, names)
    yield from filter(None, (_curve(inputs, curve, groups, names) for curve in _CURVES))
    yield from filter(None, [agreement_and_accuracy(groups, names)])
    if differing:
        yield Table(
            name="runs-options",
            title="Options that differ",
            reading="All else is the same in every training, but for seeds and folders.",
            columns=[Column(title="Option"), *(Column(title=name) for name in names)],
            rows=[(option, *map(_short, values)) for option, values in differing.items()],
        )


def _short(value: str) -> str:
    """An option's value; of a digest its beginning, which tells it from others."""
    return f"{value[:19]}…" if value.startswith("sha256:") else value


def group_name(number: int, group: Sequence[Run]) -> str:
    """What trainings that differ in their seed alone are called in a report: their number, from 1, and their loss."""
    loss = group[0].setting("loss")
    return f"{number} {group[0].path.name if loss is None else loss}"


def _results(inputs: Inputs, groups: Sequence[Sequence[Run]], names: Sequence[str]) -> Table:
    columns = (
        Column(title="Trainings"),
        Column(title="Student"),
        Column(title="Seeds"),
        Column(title="Cache"),
        Column(title="Epochs", format=",d"),
        Column(title="Last epoch", format=".2%"),
        Column(title="±", format=".2%"),
        Column(title="Best epoch", format=".2%"),
        Column(title="Calibration", format=".3f"),
        Column(title="Agreement", format=".1%"),
        Column(title="Images/s", format=",.0f"),
        Column(title="MiB", format=",.0f"),
        Column(title="GPU MiB", format=",.0f"),
    )
    rows = [_result(inputs.cache.manifest.digest, group, name) for group, name in zip(groups, names, strict=True)]
    told = [number for number in range(len(columns)) if any(row[number] is not None for row in rows)]
    return Table(
        name="runs-results",
        title="Results",
        reading="Top-1 accuracy, with masks mean IoU, after the last epoch, and after the best one, which is chosen on "
        "the images that it is "
        "measured on, so it flatters: means over seeds, ± their standard deviation. MiB is the largest memory of a "
        "process.",
        columns=[columns[number] for number in told],
        rows=[[row[number] for number in told] for row in rows],
    )


def _result(digest: str, group: Sequence[Run], name: str) -> tuple[Cell, ...]:
    def mean(value: Callable[[Run], float | None]) -> float | None:
        spread = Spread.of(value(run) for run in group)
        return None if spread is None else float(spread.mean)

    def largest(value: Callable[[Run], int | None]) -> float | None:
        known = [one for run in group if (one := value(run)) is not None]
        return max(known) / 2**20 if known else None

    last = Spread.of(run.last_score for run in group)
    assert last is not None
    digests = group[0].cache_digests
    of = "none, or not said" if not digests else "this one" if digests == (digest,) else "another"
    return (
        name,
        group[0].setting("student"),
        ", ".join(run.setting("seed") or "?" for run in group),
        of,
        max(run.epochs for run in group),
        float(last.mean),
        None if last.deviation is None else float(last.deviation),
        mean(lambda run: run.best_score),
        mean(lambda run: _last(run, "calibration_error")),
        mean(lambda run: _last(run, "agreement")),
        mean(lambda run: run.images_per_second),
        largest(lambda run: run.memory_bytes),
        largest(lambda run: run.device_memory_bytes),
    )


def _last(run: Run, name: str) -> float | None:
    value = float(metric(run.lines[-1:], name)[0])
    return value if np.isfinite(value) else None


def _curve(inputs: Inputs, curve: _Curve, groups: Sequence[Sequence[Run]], names: Sequence[str]) -> Drawing | None:
    """A metric over the epochs, a line for each group that tells it; None where none does."""
    bands = [band([metric(run.lines, curve.metric) for run in group]) for group in groups]
    told = [(name, mean, spread) for name, (mean, spread) in zip(names, bands, strict=True) if np.isfinite(mean).any()]
    if not told:
        return None
    lines, rows = [], []
    for name, mean, spread in told:
        points = spread_evenly(len(mean), _MOST_POINTS)
        epochs, low, high = points + 1, (mean - spread)[points], (mean + spread)[points]
        lines.append(Line(name=name, x=epochs, y=mean[points], low=low, high=high))
        rows += [(name, int(point) + 1, _known(float(mean[point])), _known(float(spread[point]))) for point in points]
    left_out = f" The first {MOST_LINES} of {len(told)} lines are drawn." if len(told) > MOST_LINES else ""
    table = Table(
        name=curve.name,
        title=curve.title,
        reading=curve.reading + left_out,
        columns=(
            Column(title="Trainings"),
            Column(title="Epoch", format=",d"),
            Column(title="Mean", format=curve.format),
            Column(title="± (seeds)", format=curve.format),
        ),
        rows=rows,
    )
    figure, (axes,) = new_axes(x="epoch", y=curve.axis, y_format=curve.ticks)
    draw_lines(axes, lines[:MOST_LINES])
    if curve.metric == "calibration_error" and (teacher := _teacher(inputs)) is not None:
        longest = max(len(mean) for _, mean, _ in told)
        draw_reference(axes, [1.0, max(float(longest), 2.0)], [teacher, teacher], "the teacher")
    add_legend(figure, axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    ends = [f"{name}: {mean[np.isfinite(mean)][-1]:{curve.format}}" for name, mean, _ in told[:MOST_LINES]]
    return Drawing(table=table, figure=figure, described=f"At the end, {'; '.join(ends)}.")


def _teacher(inputs: Inputs) -> float | None:
    """The teacher's calibration error: on held-out images where it was measured there, otherwise on views."""
    found = inputs.cache.manifest.identity.examination
    return None if found is None else float((found.evaluated or found.views).calibration_error)


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
