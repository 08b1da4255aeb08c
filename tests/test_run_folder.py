"""What a training leaves on disk, whatever ends it: one training or another, or none; never a mix of two."""

import errno
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from small import fork

from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import GdkdCacheError, MismatchError
from gdkd_cache.models.card import ModelCard
from gdkd_cache.training.records.folder import RunFolder
from gdkd_cache.training.train import TrainOptions, train

_CARD = ModelCard(name="cnn-s", num_classes=10, size=(8, 8), mean=(0.3, 0.3, 0.3), std=(0.4, 0.4, 0.4))


class _Scalar(torch.nn.Module):
    """A network of one number, by which files are told apart."""

    def __init__(self, value: int) -> None:
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(float(value)))


def _state(lines: list[str], replaces: str | None) -> bytes:
    """A state that says no more."""
    return save({}, {"told": json.dumps([lines, replaces])})


def _told(data: bytes) -> list[Any]:
    return json.loads(json.loads(data[8:])["__metadata__"]["told"])


def _write(folder: RunFolder, lines: list[str], value: int) -> None:
    """An epoch whose number and only weight are one value; every second is the best so far."""
    lines = [*lines, json.dumps({"epoch": value})]
    weights = {"last.safetensors": (_Scalar(value), _CARD)}
    if value % 2:
        weights["best.safetensors"] = weights["last.safetensors"]
    folder.write_epoch(lines, _state(lines, folder.replaces), weights, {"run.toml": f"value = {value}"})


def _train(path: Path, first: int, epochs: int = 2, *, force: bool = True) -> None:
    folder = RunFolder(path, force=force)
    with folder.held():
        lines: list[str] = []
        for value in range(first, first + epochs):
            folder.write_state(_state(lines, folder.replaces))
            _write(folder, lines, value)
            lines.append(json.dumps({"epoch": value}))


def _go_on(path: Path) -> bool:
    """Write again what a kill left unwritten of the epoch that the state is of; whether there is a state."""
    folder = RunFolder(path, force=False)
    data = folder.read_state()
    if data is None:
        return False
    with folder.held():
        lines, replaces = _told(data)
        if not folder.go_on(lines, replaces):
            _write(folder, lines[:-1], json.loads(lines[-1])["epoch"])
    return True


def _held(path: Path) -> tuple[list[int], dict[str, int]]:
    """The epochs of the metrics, and which epoch each file of weights is of."""
    metrics = path / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    weights = {file.stem: int(load_file(file)["value"]) for file in path.glob("*t.safetensors")}
    return [json.loads(line)["epoch"] for line in lines], weights


def _kill_at(number: int, path: Path, call: Callable[[], object]) -> bool:
    """Run the call in a process that is killed at its so-many-th operation on files of a folder; whether it was."""

    def run() -> None:
        left = number

        def operation(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            if event.startswith(("open", "os.", "shutil.")) and str(path) in str(arguments):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(operation)
        call()

    process = fork(run)
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def test_killed_at_every_operation_on_files(tmp_path: Path) -> None:
    """The earlier training (epochs 1 and 2) stays whole until the first epoch of the new one (11) is on disk."""
    whole = {(1, 2): "earlier", (): "nothing", (11,): "first", (11, 12): "second"}
    seen, number, killed = [], 0, True
    while killed:
        number += 1
        path = tmp_path / str(number)
        _train(path, 1)
        (path / "best.json").write_text("{}")  # as 0.1.0 left them
        (path / "last.json").write_text("{}")
        earlier = {file.name: file.read_bytes() for file in path.iterdir() if file.name != "state.safetensors"}
        killed = _kill_at(number, path, lambda path=path: _train(path, 11))
        epochs, weights = _held(path)
        seen.append(whole[tuple(epochs)])
        if seen[-1] == "earlier":
            assert (
                earlier.items() <= {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}.items()
            )
        elif seen[-1] != "nothing":
            assert weights["best"] == 11
            assert epochs[-1] <= weights["last"] <= 12
        if _go_on(path):  # as a training does that is run again
            state, _ = _told((path / "state.safetensors").read_bytes())
            values = [json.loads(line)["epoch"] for line in state]
            if values:
                assert _held(path) == (values, {"best": values[0], "last": values[-1]})
            else:
                assert seen[-1] in ("earlier", "nothing")  # a state within the first epoch
        _train(path, 21)
        assert _held(path) == ([21, 22], {"best": 21, "last": 22})
        assert not [file.name for file in path.iterdir() if "partial" in file.name]
        assert "{}" not in [card.read_text() for card in path.glob("*.json")]
    assert seen == sorted(seen, key=list(whole.values()).index)
    assert set(seen) == set(whole.values())


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    """A stand-in for a full disk: an error in the midst of writing, which names no file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk(tmp_path: Path) -> None:
    """In the first epoch and in a later one: an error that names the folder, and what was there stays as it was."""
    for later in (False, True):
        path = tmp_path / str(later)
        _train(path, 1)
        folder = RunFolder(path, force=True)
        with folder.held():
            lines = ['{"epoch": 11}'] if later else []
            if later:
                _write(folder, [], 11)
            before = {file.name: file.read_bytes() for file in path.iterdir()}
            with _largest_file(50), pytest.raises(OSError, match="File too large") as caught:
                _write(folder, lines, 13)
            assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
            assert {file.name: file.read_bytes() for file in path.iterdir()} == before
            _write(folder, lines, 13)
        assert _held(path)[1]["best"] == 13


def test_what_killed_trainings_left_is_swept(tmp_path: Path) -> None:
    left = ("best.safetensors.123.partial", "last.json.9.partial", ".epoch-a1_b2c3d.partial/last.safetensors")
    others = ("notes.partial", "best.safetensors.partial", ".epoch-1", ".epoch-2.partial", "data/last.json.9.partial")
    for name in (*left, *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    _train(tmp_path, 1, force=False)
    assert not [name for name in left if (tmp_path / name).exists()]
    assert all((tmp_path / name).exists() for name in others)


@pytest.mark.parametrize("written", [0, 1])
def test_two_trainings_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int) -> None:
    """The second one is refused; where a file system has no locks, it replaces the first if told to, and that stops."""
    first = RunFolder(tmp_path, force=False)
    lines = []
    with first.held():
        for value in range(1, 1 + written):
            _write(first, lines, value)
            lines.append(json.dumps({"epoch": value}))
        with pytest.raises(MismatchError, match="another training writes to"):
            _train(tmp_path, 11)

        def no_locks(descriptor: int, how: int) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr("fcntl.flock", no_locks)
        _train(tmp_path, 11)
        with pytest.raises(MismatchError, match="another training has written to"):
            _write(first, lines, 3)
    assert _held(tmp_path) == ([11, 12], {"best": 11, "last": 12})


@pytest.mark.parametrize("name", [".", "best.safetensors", "metrics.jsonl"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, Path.touch])
def test_something_is_in_the_way(
    tmp_path: Path, digits: ArraySource, name: str, make: Callable[[Path], object]
) -> None:
    """Told before the training, whatever --force says; a file where a file belongs, a folder for a folder, is not."""
    out = tmp_path / "s"
    if name != ".":
        out.mkdir()
    make(out / name)
    if make is (Path.mkdir if name == "." else Path.touch):
        with RunFolder(out, force=True).held():
            return
    options = TrainOptions(student="cnn-s", epochs=1, out=out, force=True)
    with pytest.raises(GdkdCacheError, match=r"is no (folder|plain file); .*another --out") as caught:
        train(options, digits, digits)
    assert str(out) in str(caught.value)
