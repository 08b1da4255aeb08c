"""A training that was stopped goes on as if it had not been, to the bit; another one is not taken for it."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from gdkd_cache import open_cache
from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import MismatchError
from gdkd_cache.training import loop
from gdkd_cache.training.step import Stepper
from gdkd_cache.training.train import TrainOptions, Views, train

_TIMED = ("images_per_second", "memory_bytes")


def net(num_classes: int) -> nn.Module:
    """A network that has all kinds of state: running statistics, and random numbers of its own."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(288, num_classes)
    )


class _Killed(Exception):
    pass


@contextmanager
def _killed_at(step: int, monkeypatch: pytest.MonkeyPatch, do: Callable[[], None] | None = None) -> Iterator[None]:
    """Stop in the midst of the so-many-th step of a block, or do something else before it."""
    taken, whole = 0, Stepper.__call__

    def counted(self: Stepper, *arguments: Any) -> dict[str, Tensor]:
        nonlocal taken
        taken += 1
        if taken == step and do is None:
            raise _Killed
        if taken == step and do is not None:
            do()
        return whole(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "__call__", counted)
        yield


def _options(out: Path, **fields: Any) -> TrainOptions:
    defaults: dict[str, Any] = {"student": "test_resume:net", "epochs": 3, "lr": 0.02, "ema": 0.9, "save_every": "2"}
    return TrainOptions(out=out, **(defaults | {"batch_size": 64, "threads": 1} | fields))


def _held(out: Path) -> tuple[dict[str, dict[str, Tensor]], list[dict[str, Any]]]:
    files = {path.name: load_file(path) for path in sorted(out.glob("*.safetensors"))}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return files, [{name: value for name, value in line.items() if name not in _TIMED} for line in lines]


def _same(one: Path, other: Path) -> None:
    (files, lines), (wanted_files, wanted_lines) = _held(one), _held(other)
    assert lines == wanted_lines
    assert files.keys() == wanted_files.keys()
    for name, wanted in wanted_files.items():
        assert files[name].keys() == wanted.keys()
        assert all(torch.equal(files[name][key], value) for key, value in wanted.items()), name


@pytest.mark.parametrize(
    "fields",
    [
        {"loss": "gdkd:k=2"},
        {"optimizer": "adamw", "schedule_by": "step", "lr_warmup": 1, "accumulate": 3, "clip_grad_norm": 0.5},
        {"schedule": "one-cycle", "schedule_by": "step", "precision": "bfloat16"},
    ],
    ids=["gdkd", "adamw", "one-cycle"],
)
def test_a_training_goes_on_to_the_bit(
    tmp_path: Path,
    digits: ArraySource,
    digits_test: ArraySource,
    digits_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
) -> None:
    """Four steps an epoch; stopped in each of them, once and again."""

    def run(out: Path) -> None:
        cache = open_cache(digits_cache) if "loss" in fields else None
        train(_options(out, **fields), digits, digits_test, cache=cache)

    run(tmp_path / "whole")
    for steps in ([1], [2], [3], [4], [5], [8], [12], [2, 2, 2, 6], [9, 1, 3]):
        out = tmp_path / "-".join(map(str, steps))
        for step in steps:
            with _killed_at(step, monkeypatch), pytest.raises(_Killed):
                run(out)
        run(out)
        _same(out, tmp_path / "whole")


def test_a_kill_between_an_epochs_files(
    tmp_path: Path, digits: ArraySource, digits_test: ArraySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of an epoch is there, its metrics are not: these and the weights are written again from it."""
    options = _options(tmp_path / "s", epochs=2)
    train(options, digits, digits_test)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()}
    metrics = tmp_path / "s/metrics.jsonl"
    for left in (0, 1):
        metrics.write_text("".join(f"{line}\n" for line in metrics.read_text().splitlines()[:left]))
        (tmp_path / "s/last.safetensors").write_bytes(b"of the epoch before")
        train(options, digits, digits_test)
        assert {name: (tmp_path / "s" / name).read_bytes() for name in whole if name != "log.txt"} == {
            name: data for name, data in whole.items() if name != "log.txt"
        }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_first(
    tmp_path: Path,
    digits: ArraySource,
    digits_test: ArraySource,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    """After the step under way; then the signal does what it did before: here, an exception of its handler."""
    options = _options(tmp_path / "s", save_every=None)

    def handler(number: int, frame: object) -> None:
        raise _Killed

    train(replace(options, out=tmp_path / "whole"), digits, digits_test)
    before = signal.signal(number, handler)
    try:
        for _ in range(2):
            signalled = _killed_at(2, monkeypatch, lambda: os.kill(os.getpid(), number))
            with signalled, pytest.raises(_Killed):
                train(options, digits, digits_test)
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)
    assert not (tmp_path / "s/metrics.jsonl").exists()
    train(options, digits, digits_test)
    _same(tmp_path / "s", tmp_path / "whole")


def test_a_training_that_is_done(tmp_path: Path, digits: ArraySource, digits_test: ArraySource) -> None:
    """Nothing is trained or written again, and the result is the same."""
    options = _options(tmp_path / "s", epochs=2)
    result = train(options, digits, digits_test)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "s").iterdir() if path.name != "log.txt"}
    assert train(options, digits, digits_test) == result
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "s").iterdir() if path.name != "log.txt"}
    assert after == before


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"lr": 0.1}, "option lr is 0.02 there and 0.1 now"),
        ({"epochs": 4, "ema": None}, "option ema is 0.9 there and absent now; option epochs is 3 there and 4 now"),
        ({"loss": "kd"}, "option loss is ce there and kd now; cache 0 is absent there"),
    ],
)
def test_another_training_is_refused(
    tmp_path: Path, digits: ArraySource, digits_test: ArraySource, digits_cache: Path, fields: dict[str, Any], said: str
) -> None:
    train(_options(tmp_path / "s"), digits, digits_test)
    before = {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir() if path.name != "log.txt"}
    cache = open_cache(digits_cache) if "loss" in fields else None
    with pytest.raises(MismatchError, match=said) as caught:
        train(_options(tmp_path / "s", **fields), digits, digits_test, cache=cache)
    assert "--force" in str(caught.value)
    assert {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir() if path.name != "log.txt"} == before


def test_other_data_or_views_are_refused(tmp_path: Path, digits: ArraySource, digits_test: ArraySource) -> None:
    options = _options(tmp_path / "s")
    train(options, digits, digits_test)
    fewer = replace(digits, images=digits.images[:200], labels=digits.labels[:200], keys=list(digits.keys[:200]))
    with pytest.raises(MismatchError, match="data digest is 'sha256:"):
        train(options, fewer, digits_test)
    with pytest.raises(MismatchError, match="view seed is 0 there and 1 now"):
        train(options, digits, digits_test, views=Views(seed=1))


def test_where_and_how_fast_may_change(
    tmp_path: Path, digits: ArraySource, digits_test: ArraySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _killed_at(6, monkeypatch), pytest.raises(_Killed):
        train(_options(tmp_path / "s"), digits, digits_test)
    train(_options(tmp_path / "s", save_every="3", num_workers=1, device="cpu"), digits, digits_test)
    train(_options(tmp_path / "whole"), digits, digits_test)
    _same(tmp_path / "s", tmp_path / "whole")


def test_a_replacement_goes_on(
    tmp_path: Path, digits: ArraySource, digits_test: ArraySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --force, stopped before its first epoch: the earlier weights are there, and without --force it goes on."""
    train(_options(tmp_path / "s", epochs=1), digits, digits_test)
    earlier = (tmp_path / "s/last.safetensors").read_bytes()
    with _killed_at(4, monkeypatch), pytest.raises(_Killed):
        train(_options(tmp_path / "s", lr=0.1, force=True), digits, digits_test)
    assert (tmp_path / "s/last.safetensors").read_bytes() == earlier
    with _killed_at(3, monkeypatch), pytest.raises(_Killed):
        train(_options(tmp_path / "s", lr=0.1), digits, digits_test)
    train(_options(tmp_path / "s", lr=0.1), digits, digits_test)
    train(_options(tmp_path / "whole", lr=0.1), digits, digits_test)
    _same(tmp_path / "s", tmp_path / "whole")


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "facts"])
def test_a_damaged_state(tmp_path: Path, digits: ArraySource, digits_test: ArraySource, damage: str) -> None:
    """One line that says what to do; a number that has changed is found by the checksum."""
    options = _options(tmp_path / "s", epochs=1)
    train(options, digits, digits_test)
    path = tmp_path / "s/state.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[-5] ^= 1
    path.write_bytes(
        {"cut": data[:-100], "flipped": data, "text": b"{}", "facts": data.replace(b"best_epoch", b"last_epoch")}[damage]
    )
    with pytest.raises(MismatchError, match="cannot be read .*--force"):
        train(options, digits, digits_test)


def test_only_one_training_in_a_folder(tmp_path: Path, digits: ArraySource, digits_test: ArraySource) -> None:
    options = _options(tmp_path / "s")

    def second(*arguments: Any) -> bool:
        with pytest.raises(MismatchError, match="another training writes to"):
            train(replace(options, force=True), digits, digits_test)
        return True

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "_told", lambda evaluation: {"accuracy": 0.5, "refused": float(second())})
        train(replace(options, epochs=1), digits, digits_test)
    assert json.loads((tmp_path / "s/metrics.jsonl").read_text())["refused"] == 1.0
