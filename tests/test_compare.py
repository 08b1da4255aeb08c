"""Runs side by side: grouped by their options, with mean and spread; and what strangers' folders may hold."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from gdkd_cache_cli.main import main
from hypothesis import given, settings
from hypothesis import strategies as st

from gdkd_cache.errors import UsageError
from gdkd_cache.training.records.runs import differences, group_runs, read_run

_CACHE = '[[cache]]\npath = "{path}"\ndigest = "{digest}"\nbytes_per_view = 8.125\n'


def _run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def _made(path: Path, accuracies: list[float], *, cache: str | None = "sha256:1", **options: Any) -> Path:
    """A run folder as `train` leaves it."""
    path.mkdir(parents=True)
    train = {"loss": "gdkd", "student": "cnn-s", "seed": 0, "epochs": len(accuracies), "lr": 0.05, "milestones": [1, 2]}
    train |= {"out": str(path), **options}
    lines = [f"{name} = {json.dumps(value)}" for name, value in train.items()]
    text = "\n".join(["[train]", *lines, "[data]", 'data = "digits"', ""])
    text += _CACHE.format(path=f"{path}.zarr", digest=cache) if cache else ""
    (path / "run.toml").write_text(text)
    with (path / "metrics.jsonl").open("w") as file:
        for epoch, accuracy in enumerate(accuracies, 1):
            line = {"epoch": epoch, "loss": 1.0, "accuracy": accuracy, "images_per_second": 1000.0 * epoch}
            line |= {"memory_bytes": (100 + epoch) * 2**20, "agreement": 0.5}
            file.write(json.dumps(line) + "\n")
    return path


def test_seeds_are_one_row(tmp_path: Path) -> None:
    gdkd = [_made(tmp_path / f"gdkd-{n}", [0.5, 0.7 + n / 100, 0.6], seed=n) for n in (0, 1, 2)]
    ce = _made(tmp_path / "ce", [0.1, 0.2, 0.3], loss="ce", cache=None, lr=0.1)
    said = json.loads(_run("compare", *gdkd, ce, "--json").stdout)
    first, second = said["groups"]
    assert (first["runs"], first["seeds"]) == ([str(path) for path in gdkd], ["0", "1", "2"])
    assert (first["loss"], first["student"], first["epochs"]) == ("gdkd", "cnn-s", [3, 3, 3])
    assert first["best_accuracy"]["mean"] == pytest.approx(0.71)
    assert first["best_accuracy"]["deviation"] == pytest.approx(0.01)  # n - 1; of n it is 0.0082
    assert first["last_accuracy"] == {"mean": pytest.approx(0.6), "deviation": 0.0, "values": [0.6] * 3}
    assert first["bytes_per_view"] == 8.125
    assert first["images_per_second"]["mean"] == pytest.approx(3 / (1 / 1000 + 1 / 2000 + 1 / 3000))
    assert (first["memory_bytes"], first["device_memory_bytes"]) == (103 * 2**20, None)
    assert second["last_accuracy"] == {"mean": 0.3, "deviation": None, "values": [0.3]}
    assert second["bytes_per_view"] is None
    assert said["differences"] == {
        "cache.digest": ["sha256:1", "unset"],
        "train.loss": ["gdkd", "ce"],
        "train.lr": ["0.05", "0.1"],
    }
    shown = _run("compare", *gdkd, ce).stdout
    for text in ("71.00% ± 1.00", "60.00% ± 0.00", "30.00%", "0, 1, 2", "8.1", "1,636", "103 MiB"):
        assert text in shown, text
    assert shown.endswith("cache.digest: sha256:1 in 1, unset in 2\ntrain.lr: 0.05 in 1, 0.1 in 2\n")


def test_any_other_option_parts_runs(tmp_path: Path) -> None:
    options: list[dict[str, Any]] = [{}, {"lr": 0.1}, {"milestones": [1]}, {"cache": "sha256:2"}, {"loss": "kd"}]
    paths = [_made(tmp_path / str(n), [0.5], **own) for n, own in enumerate(options)]
    groups = group_runs([read_run(path) for path in [*paths, _made(tmp_path / "again", [0.5], seed=7)]])
    assert [[run.path.name for run in group] for group in groups] == [["0", "again"], ["1"], ["2"], ["3"], ["4"]]
    assert set(differences(groups)) == {"train.lr", "train.milestones", "cache.digest", "train.loss"}
    assert differences(groups[:1]) == {}


def test_runs_of_earlier_versions(tmp_path: Path) -> None:
    """They have no run.toml, and fewer figures: each is alone."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text('{"epoch": 1, "loss": 2.0, "accuracy": 0.5, "eval_loss": 1.5}\n')
    result = _run("compare", tmp_path / "a", tmp_path / "b")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("50.00%") == 4
    assert f"{tmp_path}/a says nothing of its options" in result.stdout
    assert len(json.loads(_run("compare", tmp_path / "a", tmp_path / "b", "--json").stdout)["groups"]) == 2


def test_a_run_under_way(tmp_path: Path) -> None:
    """Of which the last line is not whole: it counts no epoch, and is said to be unfinished."""
    path = _made(tmp_path / "a", [0.5, 0.6], epochs=8)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "accu')
    result = _run("compare", path)
    assert result.stdout.endswith(f"{path}: 2 of 8 epochs are done\n")
    (path / "metrics.jsonl").write_text('{"epoch": 1')
    assert "has no epoch yet" in _run("compare", path).stderr


def test_a_real_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ("train", "--loss", "ce", "--data", "digits", "--student", "cnn-s", "--epochs", "2", "--device", "cpu")
    assert _run(*command, "--out", "a").exit_code == 0
    (row,) = json.loads(_run("compare", "a", "--json").stdout)["groups"]
    metrics = [json.loads(line) for line in Path("a/metrics.jsonl").read_text().splitlines()]
    assert row["last_accuracy"]["mean"] == metrics[-1]["accuracy"]
    assert row["epochs"] == [2]
    assert row["images_per_second"]["mean"] > 0


def test_the_same_folder_twice(tmp_path: Path) -> None:
    path = _made(tmp_path / "a", [0.5])
    (tmp_path / "link").symlink_to(path)
    result = _run("compare", path, tmp_path / "link")
    assert (result.exit_code, "is given twice" in result.stderr) == (2, True)


_LINE = '{"epoch": 1, "accuracy": 0.5}\n'


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("metrics.jsonl", "", "has no epoch yet"),
        ("metrics.jsonl", "\n", "line 1 cannot be read"),
        ("metrics.jsonl", b"\xff\n", "cannot be read"),
        ("metrics.jsonl", "[" * 100_000 + "\n", "line 1 cannot be read"),
        ("metrics.jsonl", "[1]\n", "line 1 cannot be read: epoch is"),
        (
            "metrics.jsonl",
            _LINE + '{"epoch": 2}\n',
            "line 2 cannot be read: it has no score: none of accuracy, mean_iou",
        ),
        ("metrics.jsonl", '{"epoch": 1, "accuracy": NaN}\n', "expected a finite number"),
        ("metrics.jsonl", '{"epoch": 1, "accuracy": 1.5}\n', "accuracy is '*1.5'*; it must be 0 to 1"),
        ("metrics.jsonl", '{"epoch": 1, "accuracy": true}\n', "expected a finite number"),
        ("metrics.jsonl", '{"epoch": 1, "accuracy": 1, "memory_bytes": -1}\n', "memory_bytes is"),
        ("metrics.jsonl", '{"epoch": 1, "accuracy": 1, "images_per_second": 1e308}\n', "images_per_second is"),
        ("metrics.jsonl", '{"epoch": 1, "accuracy": ' + "9" * 5000 + "}\n", "line 1 cannot be read"),
        ("run.toml", "train", "run.toml cannot be read"),
        ("run.toml", b"\xff", "run.toml cannot be read"),
        ("run.toml", "", "run.train is missing"),
        ("run.toml", "train = 3", "run.train is"),
        ("run.toml", "train = {a = " + "[" * 5000 + "}", "run.toml cannot be read"),
        ("run.toml", "[train]\nseed = 0x" + "f" * 10_000, "run.toml cannot be read"),
        ("run.toml", "[train]\nseed = 0x" + "f" * 17, "train.seed is 295147905179352825855; it must be"),
        ("run.toml", "[train]\nseed = 1979-05-27", "train.seed is"),
        ("run.toml", "[train]\nseed = [[1]]", "train.seed is"),
        ("run.toml", "[train.seed]\na = 1", "train.seed is"),
        ("run.toml", "[train]\n[cache]\na = 1", "run.cache is"),
        ("run.toml", "[train]\n[[cache]]\na = 1", r"run.cache\[0\].\w+ is missing"),
        ("run.toml", '[train]\n[[cache]]\ndigest = "a"\nbytes_per_view = inf', "bytes_per_view is"),
        ("run.toml", '[train]\n[[cache]]\ndigest = "a"\nbytes_per_view = -1', "bytes_per_view is"),
        ("run.toml", "#" * 2**20 + "#", "is larger than 1048576 bytes"),
    ],
)
def test_what_a_strangers_folder_may_hold(tmp_path: Path, name: str, text: str | bytes, said: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(_LINE)
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=said) as caught:
        read_run(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    result = _run("compare", tmp_path)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)


def test_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd" / "metrics.jsonl").mkdir(parents=True)
    for name, said in (
        ("no", "does not exist"), ("file", "is no folder"), ("empty", "metrics.jsonl does not exist"),
        ("odd", "is a folder; name a file"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            read_run(tmp_path / name)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_NAMES = ("epoch", "accuracy", "images_per_second", "memory_bytes", "device_memory_bytes", "loss")


@settings(max_examples=60, deadline=None)
@given(line=st.dictionaries(st.sampled_from(_NAMES), _VALUES), toml=st.text(max_size=40) | st.just("[train]\nlr = nan"))
def test_any_content(tmp_path_factory: pytest.TempPathFactory, line: dict[str, Any], toml: str) -> None:
    """It is read, or refused in one line."""
    path = tmp_path_factory.mktemp("run")
    (path / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "accuracy": 0.5} | line) + "\n")
    (path / "run.toml").write_bytes(toml.encode(errors="replace"))
    result = _run("compare", path)
    assert result.exit_code in (0, 2), result.output
    if result.exit_code:
        assert len(result.stderr.splitlines()) == 1
    else:
        run = read_run(path)
        assert 0 <= run.best_score <= 1
        assert run.images_per_second is None or math.isfinite(run.images_per_second)
