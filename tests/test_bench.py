"""Every row of scripts/bench.py runs."""

import importlib
import json
import math
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
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


def test_sizes_of_ones_own_logits(bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table and a drawing of each data set."""
    rng = np.random.default_rng(0)
    labels = np.arange(160, dtype=np.uint8) % 12
    logits = (rng.normal(size=(2, 160, 12)) + 4 * np.eye(12)[labels]).astype(np.float16)
    np.savez(tmp_path / "own.npz", teacher=logits, label=labels, small=logits[:1], small_label=labels)
    drawings = tmp_path / "drawings"
    given = bench.Bench(
        repeats=1,
        smoke=True,
        device=torch.device("cpu"),
        folder=tmp_path / "work",
        logits=[f"{tmp_path}/own.npz", f"{tmp_path}/own.npz:small"],
        drawings=drawings,
    )
    figures = list(bench.size.size(given))
    assert {figure.what.rsplit(", ", 1)[1] for figure in figures} == {"own", "small"}
    for name in ("own", "small"):
        root = ElementTree.parse(drawings / f"size-{name}.svg").getroot()
        texts = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
        assert {"TinyViT, k=10", "gradient error", "gdkd-cache, amortised"} <= texts
        rows = [line.split(" | ") for line in (drawings / f"size-{name}.md").read_text().splitlines()]
        errors = {row[0].removeprefix("| "): float(row[1]) for row in rows[3:] if len(row) > 1}
        assert errors["`transform`, target 0.1"] < errors["`transform`, target 0.17"] < errors["TinyViT, k=10"]
        beside = {figure.against for figure in figures if figure.what.endswith(name)}
        assert beside == {*errors} - {row for row in errors if row.startswith("`")}
    assert "size: gdkd" in capsys.readouterr().err


@pytest.mark.parametrize("spec", ["none.npz", "text.npz", "own.npz:other", "own.npz"])
def test_logits_that_are_none(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.npz").write_text("logits")
    np.savez("own.npz", teacher=np.zeros((2, 3)), label=np.zeros(2))
    with pytest.raises(SystemExit, match=f"^--logits {spec}( is no|: teacher is)"):
        bench.size.logits_in(spec)


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
