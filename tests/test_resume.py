"""A training that was stopped goes on as if it had not been, to the bit; another one is not taken for it."""

import importlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from small import fork
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from gdkd_cache import open_cache
from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import MismatchError, ModelError, UsageError
from gdkd_cache.models.weights import load_card
from gdkd_cache.training import train as training
from gdkd_cache.training.batches import Batch
from gdkd_cache.training.class_evaluation import ClassEvaluation
from gdkd_cache.training.records import saved
from gdkd_cache.training.state import State
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
    defaults |= {"batch_size": 64, "threads": 1}
    return TrainOptions(out=out, **(defaults | fields))


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
        {"schedule": "one-cycle", "schedule_by": "step", "precision": "float16"},
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
    stops = ([1], [2], [3], [4], [5], [8], [12], [2, 2, 2, 6], [9, 1, 3])
    for steps in stops if "loss" in fields else stops[1::3]:
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
        {"cut": data[:-100], "flipped": data, "text": b"{}", "facts": data.replace(b"seconds", b"minutes")}[damage]
    )
    with pytest.raises(MismatchError, match=r"cannot be read .*--force"):
        train(options, digits, digits_test)


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": -1}, {"epoch": 10**9}, {"epoch": "1"}, {"threads": 0}, {"threads": 10**9}, {"parts": 0},
        {"parts": None},
        {"taken": [[0, 0, 1]]}, {"taken": [[1, 64]]}, {"taken": [[1, 64, -1]]}, {"taken": 7}, {"lines": []},
        {"lines": ["{}"]}, {"lines": ["["]}, {"lines": ['{"epoch": 1, "accuracy": 2, "images_per_second": 1}']},
        {"totals": {"images": 64, "sums": {"loss": "x"}, "norms": [0, 0]}}, {"seconds": []}, {"seconds": math.nan},
        {"versions": 3}, {"versions": {"torch": 2}}, {"optimizer": "a group lacks a key"},
        {"optimizer": "a momentum of another shape"},
    ],
)  # fmt: skip
def test_a_strangers_state(
    tmp_path: Path, digits: ArraySource, digits_test: ArraySource, change: dict[str, Any]
) -> None:
    """One that says what no training of ours does, with a checksum that fits."""
    options = _options(tmp_path / "s", epochs=2, student="cnn-s")
    with pytest.MonkeyPatch.context() as patched, pytest.raises(_Killed), _killed_at(6, patched):
        train(options, digits, digits_test)
    path = tmp_path / "s/state.safetensors"
    with safe_open(path, "pt") as file:
        ((key, value),) = file.metadata().items()
    header, tensors = json.loads(value.partition(" ")[2]), load_file(path)
    if change.get("optimizer") == "a group lacks a key":
        header["told"]["groups"][0].pop("dampening")
    elif "optimizer" in change:
        name = next(name for name in tensors if name.endswith("momentum_buffer"))
        tensors[name] = tensors[name].flatten()[:1].clone()
    else:
        header["progress"] |= change
    text = json.dumps(header)
    path.write_bytes(save(tensors, {key: f"{saved._checksum(tensors, text)} {text}"}))
    with pytest.raises(MismatchError, match=r"cannot be read .*--force"):
        train(options, digits, digits_test)


def test_only_one_training_in_a_folder(tmp_path: Path, digits: ArraySource, digits_test: ArraySource) -> None:
    options = _options(tmp_path / "s")

    def second(*arguments: Any) -> bool:
        with pytest.raises(MismatchError, match="another training writes to"):
            train(replace(options, force=True), digits, digits_test)
        return True

    with pytest.MonkeyPatch.context() as patched:
        told = {"accuracy": 0.5}
        patched.setattr(ClassEvaluation, "told", lambda evaluation: told | {"refused": float(second())})
        train(replace(options, epochs=1), digits, digits_test)
    assert json.loads((tmp_path / "s/metrics.jsonl").read_text())["refused"] == 1.0


def _rank(rank: int, ranks: int, port: int, out: Path, cache: Path, source: ArraySource, stop: int | None) -> None:
    """One of the ranks of a training, which writes the rows of its batches; asked to stop in its so-many-th step."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    torch.set_num_threads(1)
    taken, whole = 0, Stepper.__call__
    signal.signal(signal.SIGUSR1, lambda number, frame: os._exit(0))

    def noted(self: Stepper, state: State, batch: Batch) -> dict[str, Tensor]:
        nonlocal taken
        taken += 1
        with (out / f"rows-{rank}.txt").open("a") as file:
            file.write("".join(f"{state.epoch} {row}\n" for row in batch.rows.tolist()))
        if taken == stop:
            os.kill(os.getpid(), signal.SIGUSR1)
        return whole(self, state, batch)

    Stepper.__call__ = noted
    train(_options(out, batch_size=16, epochs=2, loss="gdkd:k=2"), source, source, cache=open_cache(cache))


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 2)])
def test_another_number_of_ranks(
    tmp_path: Path, digits: ArraySource, digits_cache: Path, before: int, after: int
) -> None:
    """Stopped by a signal to one rank in the midst of an epoch: each row still comes once an epoch."""
    out = tmp_path / "s"
    out.mkdir()
    for ranks, stop in ((before, 5), (after, None)):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = [
            fork(partial(_rank, rank, ranks, port, out, digits_cache, digits, stop if rank == ranks - 1 else None))
            for rank in range(ranks)
        ]
        for process in processes:
            process.join()
        # The rank that had no signal ends with an error of ours.
        assert [process.exitcode for process in processes] == [int(stop is not None)] * (ranks - 1) + [0]
        assert (out / "metrics.jsonl").exists() == (stop is None)
    rows = [line.split() for path in out.glob("rows-*.txt") for line in path.read_text().splitlines()]
    for epoch in ("0", "1"):
        assert sorted(int(row) for one, row in rows if one == epoch) == list(range(len(digits)))
    assert [json.loads(line)["epoch"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def _stepper(at_once: bool, **fields: Any) -> Stepper:
    fields["check"] = at_once
    return Stepper(**fields)


def test_a_loss_that_is_not_finite_names_its_images(
    tmp_path: Path, digits: ArraySource, digits_test: ArraySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU before the step is taken; where losses are looked at later, the same step is found."""
    for at_once in (True, False):
        out = tmp_path / str(at_once)
        seen: list[list[str]] = []

        def broken(
            self: Stepper, state: State, batch: Batch, seen: list[list[str]] = seen, whole: Any = Stepper.__call__
        ) -> dict[str, Tensor]:
            seen.append([str(digits.keys[row]) for row in batch.rows[:4].tolist()])
            if state.epoch == 1 and state.steps == 2:
                batch = batch._replace(images=batch.images * nan)
            return whole(self, state, batch)

        with monkeypatch.context() as patched:
            patched.setattr(Stepper, "__call__", broken)
            patched.setattr(training, "Stepper", partial(_stepper, at_once))
            with pytest.raises(ModelError) as caught:
                train(_options(out), digits, digits_test)
        assert str(caught.value).startswith("epoch 2: step 3: the loss became infinite or NaN (loss nan")
        keys = ", ".join(map(repr, seen[6]))
        assert f"on the images {keys} and 60 more; lower --lr, which is 0.02" in str(caught.value)
        assert str(caught.value).endswith("last.safetensors has the weights of epoch 1")


def test_options_of_steps_change_what_they_say(tmp_path: Path, digits: ArraySource, digits_test: ArraySource) -> None:
    """Clipping bounds the step; parts of a batch are the batch where nothing normalises; weights of epochs are kept."""

    def last(out: str, **fields: Any) -> dict[str, Tensor]:
        options = _options(tmp_path / out, student="cnn-s", epochs=2, ema=None, save_every=None, **fields)
        train(options, digits, digits_test)
        return load_file(tmp_path / out / "last.safetensors")

    plain, parts, clipped = (
        last("plain"),
        last("parts", accumulate=4, keep_every=1),
        last("clipped", clip_grad_norm=0.01),
    )
    steps = [json.loads(line) for line in (tmp_path / "plain/metrics.jsonl").read_text().splitlines()]
    assert steps[0]["grad_norm"] > 0.01
    names = [name for name, value in plain.items() if value.is_floating_point() and "running" not in name]
    apart = {name: (parts[name] - plain[name]).abs().max() for name in names}
    assert any(value > 0 for value in apart.values())
    assert (tmp_path / "parts/epoch-0001.safetensors").exists()
    assert (tmp_path / "parts/epoch-0002.safetensors").read_bytes() == (
        tmp_path / "parts/last.safetensors"
    ).read_bytes()
    assert not list((tmp_path / "plain").glob("epoch-*"))
    torch.manual_seed(0)
    assert max((clipped[name] - plain[name]).abs().max() for name in names) > 1e-3


def test_the_moving_average(tmp_path: Path, digits: ArraySource, digits_test: ArraySource) -> None:
    """After one step from weights w0 to w1 with decay d: torch starts it at the weights after the first step."""
    options = _options(tmp_path / "s", student="cnn-s", epochs=2, ema=0.5, batch_size=256)
    train(options, digits, digits_test)
    one = _options(tmp_path / "one", student="cnn-s", epochs=2, ema=None, batch_size=256, keep_every=1)
    train(one, digits, digits_test)
    steps = [load_file(tmp_path / f"one/epoch-000{number}.safetensors") for number in (1, 2)]
    averaged = load_file(tmp_path / "s/last-ema.safetensors")
    for name, value in averaged.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.5 * steps[0][name] + 0.5 * steps[1][name])
    lines = [json.loads(line) for line in (tmp_path / "s/metrics.jsonl").read_text().splitlines()]
    assert all({"accuracy", "ema_accuracy", "ema_eval_loss", "calibration_error"} <= line.keys() for line in lines)
    assert load_card(tmp_path / "s/best-ema.safetensors") is not None


def test_killed_trainings_go_on() -> None:
    """`scripts/kill_trainings.py`, which does so at random instants, in short."""
    script = Path(__file__).parents[1] / "scripts" / "kill_trainings.py"
    run = subprocess.run([sys.executable, str(script), "--count", "2", "--seed", "3"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("2 of 2 trainings (1 ranks), killed ")


def test_reporters_are_told_each_epoch_once(
    tmp_path: Path, digits: ArraySource, digits_test: ArraySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a training that was stopped in its second epoch and went on."""
    options = _options(tmp_path / "s", student="cnn-s", report_to=("tensorboard",))
    with _killed_at(6, monkeypatch), pytest.raises(_Killed):
        train(options, digits, digits_test)
    train(options, digits, digits_test)
    events = EventAccumulator(str(tmp_path / "s/tensorboard")).Reload()
    told = [(event.step, event.value) for event in events.Scalars("accuracy")]
    lines = [json.loads(line) for line in (tmp_path / "s/metrics.jsonl").read_text().splitlines()]
    assert told == [(line["epoch"], pytest.approx(line["accuracy"])) for line in lines]


def watched(num_classes: int) -> nn.Module:
    """A network that notes how it is run while it trains."""

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, num_classes))

        def forward(self, images: Tensor) -> Tensor:
            logits = self.net(images)
            if self.training and torch.is_grad_enabled():
                is_last = images.is_contiguous(memory_format=torch.channels_last)
                _SEEN.append((torch.get_float32_matmul_precision(), logits.dtype, is_last))
            return logits

    return Watched()


_SEEN: list[tuple[str, torch.dtype, bool]] = []


@pytest.mark.parametrize(
    ("fields", "seen"),
    [
        ({}, ("highest", torch.float32, False)),
        ({"precision": "tf32"}, ("high", torch.float32, False)),
        ({"precision": "bfloat16"}, ("highest", torch.bfloat16, False)),
        ({"precision": "float16"}, ("highest", torch.float16, False)),
        ({"memory_format": "channels_last"}, ("highest", torch.float32, True)),
    ],
    ids=["plain", "tf32", "bfloat16", "float16", "channels_last"],
)
def test_how_a_training_computes(
    tmp_path: Path, digits: ArraySource, digits_test: ArraySource, fields: dict[str, Any], seen: tuple[Any, ...]
) -> None:
    noted = importlib.import_module("test_resume")._SEEN  # as the training imports it
    noted.clear()
    train(_options(tmp_path / "s", student="test_resume:watched", epochs=1, ema=None, **fields), digits, digits_test)
    assert noted[-1] == seen
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sync_batchnorm": True}, "sync_batchnorm needs a GPU"),
        ({"activation_checkpointing": True}, "has no blocks"),
        ({"compile": True}, "compile needs a C[+][+] compiler, and there is no nowhere"),
    ],
)
def test_preparation_is_part_of_a_training(
    tmp_path: Path,
    digits: ArraySource,
    digits_test: ArraySource,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    said: str,
) -> None:
    """What cannot be had is refused, and nothing is left."""
    monkeypatch.setenv("CXX", "nowhere")
    with pytest.raises(UsageError, match=said):
        train(_options(tmp_path / "s", **fields), digits, digits_test)
    assert not (tmp_path / "s").exists()


def test_activations_that_are_computed_again(tmp_path: Path, digits: ArraySource, digits_test: ArraySource) -> None:
    """The same training, to the bit."""
    for again in (False, True):
        options = _options(
            tmp_path / str(again), student="resnet8", epochs=1, batch_size=128, activation_checkpointing=again
        )
        train(options, digits, digits_test)
    ours, theirs = (load_file(tmp_path / name / "last.safetensors") for name in ("True", "False"))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
