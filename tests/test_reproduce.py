"""scripts/reproduce.py: a teacher, a cache and students of a preset, each trained once."""

import importlib
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from gdkd_cache.training.presets.preset import open_preset

_SCRIPTS = Path(__file__).parents[1] / "scripts"
_PRESET = """
epochs = 40
batch_size = 256
lr = 0.02
[losses.ce]
loss = "ce"
[losses.gdkd]
loss = "gdkd:k=5"
warmup = 20
[losses.kd]
loss = "kd:temperature=4"
ce_weight = 0.1
[pairs.large-small]
teacher = "cnn-s"
student = "cnn-s"
"""


@pytest.fixture
def reproduce(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(_SCRIPTS))
    return importlib.import_module("reproduce")


def _run(reproduce: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *map(str, arguments)])
    reproduce.main()


def test_a_row_of_the_table(
    reproduce: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset, out = tmp_path / "own.toml", tmp_path / "runs"
    preset.write_text(_PRESET)
    arguments = [f"{preset}/large-small", "--data", "digits", "--out", out, "--epochs", 2, "--accept-teacher"]
    _run(reproduce, monkeypatch, *arguments, "--seeds", 1)
    first = capsys.readouterr().out
    rows = [line.split("│")[1:-1] for line in first.splitlines() if line.startswith("│")]
    names = ["the teacher", "cross-entropy", "gdkd, cached", "kd, cached", "gdkd, live"]
    assert [row[0].strip() for row in rows] == names
    kept = {path: path.read_bytes() for path in sorted(out.glob("*/metrics.jsonl"))}
    assert [path.parent.name for path in kept] == ["ce-0", "gdkd-0", "gdkd-live-0", "kd-0", "teacher"]
    for text in kept.values():
        lines = [json.loads(line) for line in text.splitlines()]
        assert len(lines) == 2
    accuracy = json.loads(kept[out / "kd-0" / "metrics.jsonl"].splitlines()[-1])["accuracy"]
    assert rows[3][2].strip() == f"{accuracy:.2%}"
    assert {row[5].strip() for row in rows} == {"-"}  # nobody published these

    shutil.rmtree(out / "gdkd-0")
    _run(reproduce, monkeypatch, *arguments, "--seeds", 2)
    after = {path: path.read_bytes() for path in sorted(out.glob("*/metrics.jsonl"))}
    assert len(after) == 9
    assert all(after[path] == text for path, text in kept.items() if path.parent.name != "gdkd-0")
    assert len(after[out / "gdkd-0" / "metrics.jsonl"].splitlines()) == 2
    assert "±" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("own.toml/large-small", "--losses", "dkd"), "loss is 'dkd'; did you mean gdkd?"),
        (("own.toml/large-small", "--epochs", "1"), "holds an earlier training"),
        (("cifar100/resnet32x4",), "pair is 'resnet32x4'; did you mean"),
        (("own.toml/large-small", "--losses", "kd", "--live", "gdkd"), "--live gdkd is none of the losses: kd"),
    ],
)
def test_what_is_refused(
    reproduce: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.toml").write_text(_PRESET)
    Path("teacher").mkdir()
    Path("teacher/metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n')
    with pytest.raises(SystemExit) as raised:
        _run(reproduce, monkeypatch, *arguments, "--data", "digits", "--out", ".")
    assert raised.value.code
    assert said in capsys.readouterr().err + str(raised.value)


def test_fewer_epochs_keep_their_shares(reproduce: ModuleType) -> None:
    settings = {"epochs": 240, "warmup": 20, "lr": 0.05, "schedule": "multistep:at=150/180/210,gamma=0.1"}
    scaled = reproduce._scaled(settings, 24)
    assert (scaled["epochs"], scaled["warmup"], scaled["lr"]) == (24, 2, 0.05)
    assert scaled["schedule"] == "multistep:at=15/18/21,gamma=0.1"
    assert reproduce._scaled(settings, 240) == settings
    assert reproduce._scaled(settings, 2)["schedule"] == "multistep:at=1/2,gamma=0.1"


def test_what_is_published_is_of_presets(reproduce: ModuleType) -> None:
    for name, figures in reproduce._PUBLISHED.items():
        for loss in figures:
            assert open_preset(f"{name}/{loss}").name == f"{name}/{loss}"
