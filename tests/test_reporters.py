"""TensorBoard, trackio and Weights & Biases: every epoch once, whatever becomes of a training, and never its end."""

import json
import logging
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from own_reporters import SEEN
from reporting import line

from gdkd_cache.errors import GdkdCacheError, UsageError
from gdkd_cache.training.reporters.base import run_id
from gdkd_cache.training.reporters.registry import REPORTERS
from gdkd_cache.training.reporters.reports import Reports, require_reporters

_HERE = Path(__file__).parent


def _run(kind: str, folder: Path, *arguments: object) -> None:
    """Report in a process of its own, without a network."""
    environment = {
        "TRACKIO_DIR": str(folder / "trackio"),
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
        "HOME": str(folder),
        "PYTHONPATH": os.pathsep.join([str(_HERE), str(_HERE.parent)]),
    }
    command = [sys.executable, str(_HERE / "reporting.py"), kind, str(folder), *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def _trackio(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Of the one run there."""
    with closing(sqlite3.connect(folder / "trackio" / "gdkd-cache.db")) as database:
        rows = database.execute("select run_id, step, metrics from metrics order by step").fetchall()
    assert len({run for run, _, _ in rows}) == 1
    told = [(step, json.loads(metrics)) for _, step, metrics in rows]
    return {name: [(step, metrics[name]) for step, metrics in told] for name in sorted(told[0][1])}


def _wandb(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Of the one run there: its file is a log of records, each after a checksum (4 bytes), its size (2) and a kind."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]  (made when loaded)

    (file,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    data, at = file.read_bytes(), 7
    told: dict[str, list[tuple[int, float]]] = {}
    while at < len(data):
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        assert kind == 1  # whole
        record = Record.FromString(data[at + 7 : at + 7 + size])
        at += 7 + size
        values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for name in values.keys() - {"_step", "_timestamp", "_runtime"}:
            told.setdefault(name, []).append((values["_step"], values[name]))
    return told


def _tensorboard(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    held = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {
        name: [(event.step, pytest.approx(event.value)) for event in held.Scalars(name)]
        for name in held.Tags()["scalars"]
    }


def _expected(last: int) -> dict[str, list[tuple[int, float]]]:
    """Only numbers are told, and the epoch is the step."""
    lines = [line(epoch) for epoch in range(1, last + 1)]
    return {name: [(one["epoch"], one[name]) for one in lines] for name in ("accuracy", "loss")}


def _open(folder: Path, *names: str, before: int = 0) -> Reports:
    lines = [line(epoch) for epoch in range(1, before + 1)]
    return Reports(names, folder, name="student", options={"lr": 0.05, "losses": ("a", "b")}, lines=lines)


def test_tensorboard(tmp_path: Path) -> None:
    """Killed after a report whose epoch was never kept, or before it reported one that was."""
    reports = _open(tmp_path, "tensorboard")
    for epoch in (1, 2):
        reports.report(line(epoch))
    reports.report(line(3) | {"loss": 77.0})  # of which nothing is left when it goes on
    assert _tensorboard(tmp_path)["loss"][-1] == (3, 77)  # on disk without an end
    reports = _open(tmp_path, "tensorboard", before=2)
    reports.report(line(3))
    reports.close()
    assert _tensorboard(tmp_path) == _expected(3)
    _open(tmp_path, "tensorboard", before=5).close()
    assert _tensorboard(tmp_path) == _expected(5)
    _open(tmp_path, "tensorboard").close()  # begun anew
    assert not any(_tensorboard(tmp_path).values())


def test_tensorboard_keeps_the_options(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _open(tmp_path, "tensorboard").close()
    held = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (event,) = held.Tensors("options/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert json.loads(text.strip("`")) == {"name": "student", "lr": 0.05, "losses": ["a", "b"]}


@pytest.mark.parametrize(("kind", "read"), [("trackio", _trackio), ("wandb", _wandb)])
def test_services(kind: str, read: Callable[[Path], object], tmp_path: Path) -> None:
    """Killed at once after its reports, which libraries write only later, or after an end; each time it goes on."""
    _run(kind, tmp_path, 0, 1, 3, "dies")
    _run(kind, tmp_path, 3, 4, 4, "ends")
    first = (tmp_path / f"{kind}-run.txt").read_text()
    assert read(tmp_path) == _expected(4)
    _run(kind, tmp_path, 5, 6, 7, "ends")
    assert read(tmp_path) == _expected(7)
    assert (tmp_path / f"{kind}-run.txt").read_text() == first


def test_the_id_of_a_run(tmp_path: Path) -> None:
    """A training that begins has a new one; what a stranger's folder says is no id."""
    first = run_id(tmp_path, "wandb", 1)
    assert run_id(tmp_path, "wandb", 2) == first
    assert run_id(tmp_path, "trackio", 2) != first
    assert run_id(tmp_path, "wandb", 1) != first
    (tmp_path / "wandb-run.txt").write_text("../../elsewhere")
    assert len(run_id(tmp_path, "wandb", 2)) == 32


@pytest.mark.parametrize("name", [*REPORTERS])
def test_what_is_not_installed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    for attempt in (lambda: require_reporters([name]), lambda: _open(tmp_path, name)):
        with pytest.raises(UsageError) as raised:
            attempt()
        assert str(raised.value).endswith(f"is not installed: pip install 'gdkd-cache[{name}]'")
    assert not list(tmp_path.iterdir())


def test_an_unknown_name() -> None:
    with pytest.raises(UsageError, match="reporter is 'tensorbord'; it must be one of tensorboard, trackio, wandb"):
        require_reporters(["tensorbord"])
    with pytest.raises(UsageError, match=r"derives from gdkd_cache\.training\.reporters\.base\.Reporter"):
        require_reporters(["own_reporters:SEEN"])


def test_one_that_fails_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    reports = _open(tmp_path, "own_reporters:Breaking", "tensorboard")
    for epoch in (1, 2, 3):
        reports.report(line(epoch))
    reports.close()
    assert SEEN == [1, 2]
    assert caplog.messages == ["report to own_reporters:Breaking failed (no route to host): it gets no more"]
    assert _tensorboard(tmp_path) == _expected(3)


def test_one_that_cannot_begin(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Before a training it is an error; a training that goes on by itself goes on without."""
    caplog.set_level(logging.WARNING)
    with pytest.raises(GdkdCacheError, match=r"report to own_reporters:Closed cannot begin \(no route to host\)"):
        _open(tmp_path, "own_reporters:Closed")
    reports = _open(tmp_path, "own_reporters:Closed", before=1)
    reports.report(line(2))
    assert caplog.messages == [
        "report to own_reporters:Closed cannot go on (no route to host): the training does without"
    ]


def test_the_first_rank_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"TORCHELASTIC_RUN_ID": "1", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    reports = _open(tmp_path, "tensorboard")
    reports.report(line(1))
    reports.close()
    assert not list(tmp_path.iterdir())
