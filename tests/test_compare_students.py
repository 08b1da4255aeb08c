"""scripts/compare_students.py: a teacher, caches of several fidelities and students, each trained once."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from gdkd_cache.models.network import Network

_SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(_SCRIPTS))
    return importlib.import_module("compare_students")


def test_a_table_of_students(
    compare: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = "--data digits --teacher cnn-s --teacher-epochs 2 --fidelities 0.1 0.3 --views 1 --epochs 1 --seeds 1"
    given += " --kept 4 --loss gdkd:k=3,w2=2"
    monkeypatch.setattr(sys, "argv", ["compare", *given.split(), "--out", str(tmp_path)])
    monkeypatch.setenv("COLUMNS", "200")
    compare.main()
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    table = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    assert list(table) == [
        "cross-entropy only",
        "live teacher",
        "all logits as float16",
        "4 classes, exact tail mass",
        "cache, target 0.1",
        "cache, target 0.3",
    ]
    assert table["live teacher"][:2] == ["-", "-"]
    assert table["live teacher"][3::2] == ["+0.00"] * 3
    errors = [float(table[f"cache, target {target}"][1]) for target in (0.1, 0.3)]
    assert 0 < errors[0] <= 0.1 < errors[1] <= 0.3
    assert len(list(tmp_path.glob("*-0/metrics.jsonl"))) == 6


def test_differences_are_taken_at_each_seed(compare: ModuleType) -> None:
    assert compare.against([0.31, 0.42, 0.5], [0.3, 0.4, 0.5]) == "+1.00 ± 1.00"


def test_a_teacher_is_asked_once_for_an_image(compare: ModuleType, teacher: Network) -> None:
    class Counting(nn.Module):
        images = 0

        def forward(self, images: Tensor) -> Tensor:
            self.images += len(images)
            return teacher.model(images)

    counting = Counting()
    once = importlib.import_module("student_runs").asked_once(replace(teacher, model=counting))
    pixels = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first, again = once.logits(pixels[:4]), once.logits(pixels.flip(0))
    assert counting.images == 6
    torch.testing.assert_close(again.flip(0), teacher.logits(pixels))
    assert torch.equal(first, again.flip(0)[:4])
    assert once.description == teacher.description
