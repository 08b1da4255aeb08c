"""Every row of scripts/bench.py runs."""

import importlib
import json
import math
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

_SCRIPT = Path(__file__).parents[1] / "scripts" / "bench.py"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(_SCRIPT.parent))
    return importlib.import_module("bench")


def test_every_row_runs(bench: ModuleType) -> None:
    """At the smallest size, once: not to measure anything."""
    done = subprocess.run([sys.executable, _SCRIPT, "--smoke", "--json"], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["figures"]
    skipped = {"view-load"} if "view-load: skipped" in done.stderr else set()  # where git lacks version 0.1.0
    rows = {row.__name__.replace("_", "-") for row in bench.ROWS}
    assert {figure["row"] for figure in figures} == rows - skipped
    assert all(math.isfinite(ratio) for figure in figures for ratio in figure["ratios"])


def test_an_unknown_row() -> None:
    done = subprocess.run([sys.executable, _SCRIPT, "speed"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "speed is no row; rows are loss," in done.stderr


@pytest.mark.parametrize("packed", [False, True])
def test_photographs_of_ones_own(bench: ModuleType, tmp_path: Path, packed: bool) -> None:
    """Those of a folder or of a tar file, whatever else lies there."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    Image.new("RGB", (30, 26)).save(folder / "one.JPEG")
    Image.new("RGB", (26, 30)).save(folder / "two.jpg")
    (folder / "list.txt").write_text("one two")
    archive = tmp_path / "photographs.tar"
    with tarfile.open(archive, "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    source = bench.render.photographs(archive if packed else folder, 8)
    assert list(source.keys) == ["one.JPEG", "two.jpg"]
    assert [source[row][0].shape for row in range(2)] == [(26, 30, 3), (30, 26, 3)]


def test_what_cannot_be_measured_is_said(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without git there is no version 0.1.0 to compare with."""
    monkeypatch.setenv("PATH", str(tmp_path))
    given = bench.Bench(repeats=1, smoke=True, device=torch.device("cpu"), folder=tmp_path)
    assert list(bench.loading.view_load(given)) == []
    told = "view-load: skipped: there is no git here with the commit 5ccdda5f of version 0.1.0\n"
    assert capsys.readouterr().err == told
