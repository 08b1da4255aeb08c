"""The gradient error of losses that a cache was not measured for."""

import logging
from pathlib import Path

import pytest
import torch
from small import build_small
from test_transform import teacher_like

import gdkd_cache as gc
from gdkd_cache.codec.fidelity import gradient_error
from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import NotServedError
from gdkd_cache.models.network import Network
from gdkd_cache.training.train import TrainOptions, train

_LOSSES = (
    "gdkd:temperature=4", "gdkd:temperature=1,w2=1", "kd:temperature=4", "kd:temperature=2,standardize=true",
    "dkd:temperature=4,beta=2", "gdkd3:temperature=2",
)  # fmt: skip


@pytest.mark.parametrize("declared", ["gdkd:temperature=4", "gdkd:temperature=1,w2=1", "kd:temperature=4"])
def test_it_is_about_what_the_full_logits_say(tmp_path: Path, declared: str) -> None:
    logits, labels = teacher_like(1500, 40)
    keys = [str(row) for row in range(len(logits))]
    gc.pack(
        tmp_path / "c.zarr", logits[None], keys=keys, labels=labels, losses=(declared,), codec="transform", fidelity=0.1
    )
    cache = gc.open_cache(tmp_path / "c.zarr")
    decoded, top = cache.view(0).decode(range(len(logits)))
    for spec in _LOSSES:
        loss = gc.loss(spec)
        found = cache.gradient_error(loss)
        assert found is not None
        assert found.is_measured == (spec == declared)
        truth = gradient_error(loss, logits, decoded, labels, top.classes)
        assert 0.5 * truth < found.value < 2 * truth, spec


def test_exact_values_and_a_single_loss(tmp_path: Path) -> None:
    """A dense cache errs by next to nothing whatever the loss, and topk refuses what it cannot serve."""
    logits, labels = teacher_like(300, 20)
    keys = [str(row) for row in range(len(logits))]
    for codec in ("dense", "topk"):
        gc.pack(tmp_path / codec, logits[None], keys=keys, labels=labels, losses=("gdkd",), codec=codec)
    dense, topk = gc.open_cache(tmp_path / "dense"), gc.open_cache(tmp_path / "topk")
    found = dense.gradient_error(gc.loss("kd:temperature=1"))
    assert found is not None
    assert not found.is_measured
    assert found.value < 1e-3
    found = topk.gradient_error(gc.loss("gdkd:k=3,w2=1"))
    assert found is not None
    assert not found.is_measured
    assert found.value > 0
    with pytest.raises(NotServedError):
        topk.gradient_error(gc.loss("kd:temperature=2"))


def test_a_training_is_told(
    tmp_path: Path,
    digits: ArraySource,
    digits_test: ArraySource,
    teacher: Network,
    caplog: pytest.LogCaptureFixture,
) -> None:
    declared = "gdkd:temperature=1.0,w2=1.0"
    build_small(tmp_path / "c.zarr", digits, teacher, codec="transform", losses=(declared,))
    cache = gc.open_cache(tmp_path / "c.zarr")
    caplog.set_level(logging.INFO)
    options = TrainOptions(out=tmp_path / "a", student="cnn-s", epochs=1, loss=declared)
    train(options, digits, digits_test, cache=cache)
    assert "was not measured" not in caplog.text
    options = TrainOptions(out=tmp_path / "b", student="cnn-s", epochs=1, loss="kd:temperature=2.0")
    train(options, digits, digits_test, cache=cache)
    assert f"build with --for {declared} --for kd:temperature=2.0" in caplog.text


@pytest.mark.parametrize("spec", ["gdkd", "gdkd:temperature=1.0,kl=both", "kd:standardize=True", "dkd:beta=2.0"])
def test_a_spec_gives_the_loss_again(spec: str) -> None:
    loss = gc.loss(spec)
    assert gc.loss(loss.spec) == loss
    assert loss.spec == spec


def test_the_noise_is_the_same_every_time(tmp_path: Path) -> None:
    logits, labels = teacher_like(200, 12)
    gc.pack(tmp_path / "c.zarr", logits[None], keys=[str(row) for row in range(200)], labels=labels, losses=("gdkd",))
    torch.manual_seed(1)
    cache, loss = gc.open_cache(tmp_path / "c.zarr"), gc.loss("kd:temperature=1")
    before = torch.random.get_rng_state()
    assert cache.gradient_error(loss) == cache.gradient_error(loss)
    assert torch.equal(before, torch.random.get_rng_state())
