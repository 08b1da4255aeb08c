"""scripts/compare_methods.py: one cache, a student a method and seed, and a table of them all."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gdkd_cache.losses.registry import LOSSES
from gdkd_cache.training.options import CROSS_ENTROPY, TrainOptions
from gdkd_cache.training.tasks import task_of

_SCRIPTS = Path(__file__).parents[1] / "scripts"


class _Here:
    """In place of a process of its own."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> "_Here":
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, call: Callable[..., object], *arguments: Any) -> "_Here":
        call(*arguments)
        return self

    def result(self) -> None: ...


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(_SCRIPTS))
    return importlib.import_module("compare_methods")


def test_every_loss_has_a_row_and_settings_that_are_allowed(compare: ModuleType) -> None:
    methods = compare.methods()
    losses = {str(settings["loss"]).partition(":")[0] for settings in methods.values()}
    assert losses == {*LOSSES, CROSS_ENTROPY}
    for name, settings in methods.items():
        assert task_of(TrainOptions(student="cnn-s", epochs=1, out=Path(name), **settings))


def test_a_table_of_methods(
    compare: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Started again, it says the same and trains nothing."""
    given = "--data digits --teacher cnn-s --teacher-epochs 2 --epochs 1 --seeds 2 --methods ce kd gdkd"
    monkeypatch.setattr(sys, "argv", ["compare", *given.split(), "--out", str(tmp_path)])
    monkeypatch.setattr(compare, "ProcessPoolExecutor", _Here)
    compare.main()
    said = capsys.readouterr().out
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines()]
    assert head[:3] == ["method", "loss", "weights"]
    assert [row[0] for row in rows] == ["ce", "kd", "gdkd"]
    assert [row[3][:1] for row in rows] == ["-", "~", "0"]  # nothing, an estimate, what was measured and met
    assert float(rows[2][3]) <= 0.1
    assert rows[1][6] == "+0.00 ± 0.00"
    assert all(int(row[8].replace(",", "")) > 0 for row in rows)
    monkeypatch.setattr(compare, "train", None)
    compare.main()
    assert capsys.readouterr().out == said
