"""A training's peak of memory, and steps that are split so that it stays below a limit."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gdkd_cache.errors import MismatchError, UsageError
from gdkd_cache.training import memory
from gdkd_cache.training.memory import find_accumulation, normalizes_batches, peak_memory

_CPU, _MIB = torch.device("cpu"), 2**20
_HERE = Path(__file__).parent

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process takes")


class _Steps:
    """Steps that take so many MiB an image, and some once and for all."""

    def __init__(self, per_image: int, fixed: int = 0) -> None:
        self.per_image, self.fixed, self.kept = per_image, fixed, bytearray()
        self.taken: list[int] = []

    def __call__(self, count: int) -> None:
        torch.rand(8)
        self.taken.append(count)
        self.kept = self.kept or bytearray(self.fixed * _MIB)
        held = np.ones(count * self.per_image * _MIB, np.uint8)
        time.sleep(0.01)  # as long as a network might hold it
        del held


def _limit(room: int) -> int:
    """A limit of which steps may take so many MiB."""
    return int((memory._ProcessGauge().settle() + room * _MIB) / memory._SHARE)


def _find(steps: Callable[[int], object], batch_size: int, room: int, batch_norm: bool = False) -> Any:
    return find_accumulation(steps, batch_size, _limit(room), _CPU, batch_norm=batch_norm)


def test_the_peak() -> None:
    memory._ProcessGauge().settle()  # what other tests took counts no more
    before = peak_memory(_CPU)
    assert list(before) == ["memory_bytes"]
    np.ones(256 * _MIB, np.uint8)
    assert peak_memory(_CPU)["memory_bytes"] > before["memory_bytes"] + 32 * _MIB


@linux
@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize(
    ("room", "fixed", "parts", "images"),
    [(1000, 0, 1, 40), (270, 0, 2, 20), (250, 60, 3, 14), (20, 0, 40, 1)],
)
def test_the_fewest_parts_that_fit(
    sampled: bool,
    room: int,
    fixed: int,
    parts: int,
    images: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of 40 images of 12 MiB each; no step that was tried took more than there is."""
    caplog.set_level(logging.INFO)
    if sampled:
        monkeypatch.setattr(memory, "_PEAK_RESET", tmp_path)
    steps, state = _Steps(12, fixed), torch.get_rng_state()
    found = _find(steps, 40, room)
    assert (found.parts, found.images) == (parts, images)
    assert steps.taken == sorted(set(steps.taken))
    assert steps.taken[0] == 1
    assert 12 * steps.taken[-1] + fixed <= room
    assert torch.equal(torch.get_rng_state(), state)
    split = f"{parts} micro-batches of {images} images a step" if parts > 1 else "40 images a step, at once"
    assert f": {split} (peak about " in caplog.text
    assert "batch normalisation" not in caplog.text


@linux
def test_one_image_is_too_large() -> None:
    steps = _Steps(64)
    with pytest.raises(
        MismatchError, match=r"a step of 1 images at a time needs about .* --max-memory is .*; raise it"
    ):
        _find(steps, 16, 32)
    assert steps.taken == [1]
    with pytest.raises(MismatchError, match="are taken before the first step, --max-memory is 1 MiB"):
        find_accumulation(steps, 16, _MIB, _CPU, batch_norm=False)
    assert steps.taken == [1]


@linux
@pytest.mark.parametrize(("batch_size", "parts"), [(1, 1), (2, 1), (5, 2), (8, 3)])
def test_batch_normalisation_needs_two(batch_size: int, parts: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    steps = _Steps(12)
    found = _find(steps, batch_size, 40, batch_norm=True)
    sizes = [len(rows) for rows in np.array_split(np.arange(batch_size), parts)]
    assert (found.parts, found.images) == (parts, max(sizes))
    assert min(steps.taken) >= min(2, batch_size)
    assert min(sizes) >= min(2, batch_size)
    told = "batch normalisation takes its statistics of micro-batches" in caplog.text
    assert told == (found.parts > 1)


def test_which_networks_normalise_batches() -> None:
    assert normalizes_batches(nn.Sequential(nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))))
    assert not normalizes_batches(nn.Sequential(nn.GroupNorm(1, 1), nn.LayerNorm(1)))


@linux
def test_a_full_device_is_no_fault() -> None:
    def step(count: int) -> None:
        if count > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert _find(step, 16, 100).images == 4

    def broken(count: int) -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        _find(broken, 16, 100)


def test_systems_that_tell_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    assert peak_memory(_CPU)["memory_bytes"] > 2**24
    with pytest.raises(UsageError, match="--max-memory needs Linux, or a GPU"):
        find_accumulation(_Steps(1), 8, 2**40, _CPU, batch_norm=False)


def _train(out: Path, limit: int) -> dict[str, Any]:
    environment = {"PYTHONPATH": str(_HERE.parent)}
    command = [sys.executable, str(_HERE / "limited.py"), str(out), str(limit)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@linux
def test_a_training_stays_below_its_limit(tmp_path: Path) -> None:
    """One whose plain step takes more, its evaluation too; the losses are the same."""
    plain = _train(tmp_path / "plain", 0)
    limit = int(0.8 * plain["peak"]) // _MIB
    split = _train(tmp_path / "split", limit)
    assert split["peak"] < limit * _MIB < plain["peak"]
    assert split["losses"] == pytest.approx(plain["losses"], rel=1e-4)
    assert split["losses"][0] != split["losses"][-2]
