"""`gdkd-cache compare`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gdkd_cache.terminal import say, say_json, say_table

if TYPE_CHECKING:
    from gdkd_cache.training.records.runs import Run, Spread

_COLUMNS = (
    "", "runs", "loss", "student", "seeds", "best", "last", "agreement", "bytes a view", "images/s",
    "memory", "GPU memory",
)  # fmt: skip
_SHOWN = ("train.loss", "train.student")
"""Settings that are columns."""


@click.command(short_help="Compare trainings: mean and spread over seeds, speed, memory, size of the cache.")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for machines.")
def compare(runs: tuple[Path, ...], as_json: bool) -> None:
    """Compare trainings, whose folders are RUNS: those that differ in their seed alone are one row.

    Best and last are the top-1 accuracy on what was evaluated after each epoch, or the mean IoU where that has masks:
    of the best epoch and of the last one, as means over the runs of a row with their standard deviation (n - 1). The
    best epoch is chosen on what it is measured on: it flatters. Agreement is how often the student's likeliest class
    is the teacher's on the training views of the last epoch: beside the accuracy it tells a student that follows its
    teacher from one that has learnt. Memory is the largest peak of a process. Other options that differ between rows
    stand below the table.

    \b
    Example:
      gdkd-cache compare runs/kd-0 runs/kd-1 runs/kd-2 runs/gdkd-0 runs/gdkd-1 runs/gdkd-2
    """
    from gdkd_cache.training.records.runs import differences, group_runs, read_run

    groups = group_runs([read_run(path) for path in runs])
    rows, differing = [_facts(group) for group in groups], differences(groups)
    if as_json:
        say_json({"groups": rows, "differences": differing})
        return
    say_table(_COLUMNS, [_cells(number, row) for number, row in enumerate(rows, 1)])
    for name, values in differing.items():
        if name not in _SHOWN:
            say(f"{name}: {', '.join(f'{value} in {number}' for number, value in enumerate(values, 1))}")
    for run in (run for group in groups for run in group):
        if run.unfinished is not None:
            say(f"{run.path}: {run.epochs} of {run.unfinished} epochs are done")
        if run.settings is None:
            say(f"{run.path} says nothing of its options, as trainings of earlier versions")


def _facts(group: "Sequence[Run]") -> dict[str, Any]:
    """What is told of runs that differ in their seed alone."""
    from gdkd_cache.training.records.runs import Spread

    first = group[0]
    figures = {
        f"best_{first.score}": "best_score",
        f"last_{first.score}": "last_score",
        "last_agreement": "last_agreement",
        "images_per_second": "images_per_second",
    }
    spreads = {name: _spread(Spread.of(getattr(run, figure) for run in group)) for name, figure in figures.items()}
    peaks = {
        name: max((value for run in group if (value := getattr(run, name)) is not None), default=None)
        for name in ("memory_bytes", "device_memory_bytes")
    }
    return {
        "score": first.score,
        "runs": [str(run.path) for run in group],
        "loss": first.setting("loss"),
        "student": first.setting("student"),
        "seeds": [run.setting("seed") for run in group],
        "epochs": [run.epochs for run in group],
        **spreads,
        "bytes_per_view": first.bytes_per_view,
        **peaks,
    }


def _spread(spread: "Spread | None") -> dict[str, Any] | None:
    return None if spread is None else vars(spread)


def _cells(number: int, row: dict[str, Any]) -> list[str | list[str]]:
    speed, size = row["images_per_second"], row["bytes_per_view"]
    return [
        str(number),
        row["runs"],
        row["loss"] or "?",
        row["student"] or "?",
        ", ".join(seed or "?" for seed in row["seeds"]),
        _percent(row[f"best_{row['score']}"]),
        _percent(row[f"last_{row['score']}"]),
        "-" if row["last_agreement"] is None else _percent(row["last_agreement"]),
        "-" if size is None else f"{size:.1f}",
        "-" if speed is None else f"{speed['mean']:,.0f}",
        *(_mebibytes(row[name]) for name in ("memory_bytes", "device_memory_bytes")),
    ]


def _percent(spread: dict[str, Any]) -> str:
    deviation = spread["deviation"]
    return f"{spread['mean']:.2%}" + ("" if deviation is None else f" ± {deviation * 100:.2f}")


def _mebibytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 2**20:,.0f} MiB"
