"""Options that say an amount in a text."""

from pathlib import Path
from typing import Any

import pytest

from gdkd_cache.errors import UsageError
from gdkd_cache.training.amounts import Course, Interval, parse_bytes, parse_course, parse_interval
from gdkd_cache.training.options import TrainOptions


@pytest.mark.parametrize(
    ("text", "interval"),
    [("500", Interval(steps=500)), ("90s", Interval(seconds=90.0)), ("10min", Interval(seconds=600.0)),
     ("1.5h", Interval(seconds=5400.0))],
)  # fmt: skip
def test_intervals(text: str, interval: Interval) -> None:
    assert parse_interval("save_every", text) == interval


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "0min", "5days", "1e3", "5 min", "9" * 23, "min"])
def test_no_intervals(text: str) -> None:
    with pytest.raises(UsageError, match=r"save_every is .*; it must be a number of steps"):
        parse_interval("save_every", text)


def test_bytes() -> None:
    assert [parse_bytes("x", text) for text in ("4GiB", "1.5MiB", "512KiB", "77", "3B")] == [
        2**32, 3 * 2**19, 2**19, 77, 3,
    ]  # fmt: skip
    for text in ("", "0", "4GB", "4 GiB", "-1", "0.5B", "nan"):
        with pytest.raises(UsageError, match=r"x is .*; it must be a number and one of B, KiB"):
            parse_bytes("x", text)


def test_courses() -> None:
    """Linear between the points, constant outside."""
    course = parse_course("weights", "2:1,4:3,10:0")
    assert course == Course(epochs=(2, 4, 10), values=(1.0, 3.0, 0.0))
    assert [course.at(epoch) for epoch in (1, 2, 3, 4, 7, 10, 99)] == [1, 1, 2, 3, 1.5, 0, 0]
    assert parse_course("weights", "3:0.5").at(1) == 0.5


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "must be EPOCH:VALUE"), ("1", "must be EPOCH:VALUE"), ("1:x", "must be EPOCH:VALUE"), ("x:1", "must be"),
     ("1:1,", "must be EPOCH:VALUE"), ("0:1", "must rise"), ("2:1,2:3", "must rise"), ("3:1,2:1", "must rise"),
     ("1:nan", "nan at epoch 1 must be in 0"), ("1:-1", "-1.0 at epoch 1 must be in 0"), ("1:1e9", "must be in 0")],
)  # fmt: skip
def test_no_courses(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_course("weights", text)


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"save_every": "often"}, "save_every is often"), ({"max_memory": "much"}, "max_memory is much"),
     ({"views": "all"}, "views are 'all'"), ({"temperatures": "1:0"}, "temperatures: 0.0 at epoch 1 must be in 0.001"),
     ({"distillation_weights": "x"}, "distillation_weights is x"), ({"ema": 1.0}, "it must be below 1"),
     ({"ema": 0.0}, "ema is 0"), ({"accumulate": 0}, "accumulate is 0"),
     ({"clip_grad_norm": 0.0}, "clip_grad_norm is 0"),
     ({"report_to": ("paper",)}, "it must be one of tensorboard, trackio, wandb"),
     ({"label_smoothing": 1.5}, "label_smoothing is 1.5"), ({"memory_format": "x"}, "memory_format is 'x'")],
)  # fmt: skip
def test_options_are_checked_when_they_are_made(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        TrainOptions(student="cnn-s", epochs=1, out=Path("out"), **fields)
