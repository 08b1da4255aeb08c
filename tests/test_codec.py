"""Encode, decode: exact ranks, exact masses, and losses refused by name."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import gdkd_cache as gc
from gdkd_cache import losses
from gdkd_cache.building.options import CodecChoice
from gdkd_cache.codec.base import Codec
from gdkd_cache.codec.calibration import Calibration
from gdkd_cache.codec.dense import DenseCodec
from gdkd_cache.codec.fidelity import decode_rows
from gdkd_cache.codec.stored import codec_from_json
from gdkd_cache.codec.topk import TopKCodec
from gdkd_cache.errors import CacheError, GdkdCacheError, UsageError


def _logits(rows: int, num_classes: int, seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, num_classes, generator=generator) * scale
    return logits, torch.randint(0, num_classes, (rows,), generator=generator)


_CODECS = ["topk", "dense", "dense:dtype=float32", "transform:step=2"]


@lru_cache(maxsize=64)
def _fitted(spec: str, num_classes: int, rows: int = 64) -> Codec:
    """A codec fitted to rows of its own, whose labels leave half of the classes out."""
    logits, labels = _logits(rows, num_classes, seed=99)
    loss = gc.loss("gdkd" if num_classes > 5 else "kd")
    return (
        Calibration(CodecChoice(codec=spec, losses=(loss,)).request, logits, labels // 2, stored_rows=1000)
        .choose()
        .codec
    )


@pytest.mark.parametrize("spec", _CODECS)
@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 300), st.integers(1, 12), st.integers(0, 2**31), st.sampled_from([0.0, 0.5, 3.0, 60.0]), st.data()
)
def test_ranks_are_exact(spec: str, num_classes: int, rows: int, seed: int, scale: float, data: st.DataObject) -> None:
    """Any C, constant rows, ties, saturated rows: the partition is the full logits' for every k, and values agree."""
    logits, labels = _logits(rows, num_classes, seed, scale)
    if data.draw(st.booleans()):
        logits = logits.round()
    codec = _fitted(spec, num_classes)
    columns = codec.encode(logits, labels)
    for name, column in codec.columns().items():
        assert columns[name].shape == (rows, *column.shape)
        assert str(columns[name].dtype) == f"torch.{column.dtype}"
        assert not (columns[name].float() == column.fill).any()
    decoded, top = decode_rows(codec, columns, labels)
    assert torch.equal(top.classes, losses.top_classes(logits, codec.num_top))
    assert (top.values.diff(dim=-1) <= 0).all()
    assert torch.equal(decoded.gather(-1, top.classes), top.values)
    assert (decoded.max(-1).values <= top.values[:, 0]).all()
    rest = decoded.scatter(-1, top.classes, -torch.inf)
    assert (rest <= top.values[:, -1:]).all()


def test_topk_masses_are_exact() -> None:
    """Level 0 and level 1 of the top group are those of the full logits, at each declared temperature."""
    logits, labels = _logits(64, 100)
    codec = TopKCodec(num_classes=100, num_top=10, temperatures=(1.0, 4.0))
    columns = codec.encode(logits, labels)
    for temperature in (1.0, 4.0):
        decoded, top = codec.decode(columns, labels, temperature)
        full, ours = ((z / temperature).softmax(-1).gather(-1, top.classes) for z in (logits, decoded))
        torch.testing.assert_close(ours, full, rtol=0.02, atol=1e-4)
        full, ours = ((z / temperature).softmax(-1).gather(-1, labels[:, None]) for z in (logits, decoded))
        torch.testing.assert_close(ours, full, rtol=0.02, atol=1e-4)


def test_dense_float32_is_the_teacher_to_the_bit() -> None:
    logits, labels = _logits(64, 100)
    codec = DenseCodec(num_classes=100, dtype="float32")
    assert torch.equal(codec.decode(codec.encode(logits, labels), labels).logits, logits)


def test_dense_float16_is_centred() -> None:
    logits, labels = _logits(64, 100)
    codec = DenseCodec(num_classes=100)
    decoded = codec.decode(codec.encode(logits + 1000, labels), labels).logits
    torch.testing.assert_close(decoded, logits - logits.mean(-1, keepdim=True), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("spec", _CODECS)
def test_any_dtype_of_logits(spec: str, dtype: torch.dtype) -> None:
    logits, labels = _logits(16, 20)
    codec = _fitted(spec, 20)
    decoded, top = decode_rows(codec, codec.encode(logits.to(dtype), labels), labels)
    assert decoded.dtype == torch.float32
    assert torch.equal(top.classes, losses.top_classes(logits.to(dtype), codec.num_top))


def test_gaps_that_do_not_fit_are_refused() -> None:
    logits, labels = torch.tensor([[5e3, 0.0, 0.0], [0.0, 1.0, 2.0]]), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(GdkdCacheError, match="row 0 of the batch: a logit lies 5000 below"):
        TopKCodec(num_classes=3, num_top=2).encode(logits, labels)
    with pytest.raises(GdkdCacheError, match="exceeds float16"):
        DenseCodec(num_classes=3, num_top=2).encode(logits * 100, labels)


_REFUSALS: list[tuple[Codec, str, str | None]] = [
    (TopKCodec(num_classes=100), "gdkd", None),
    (TopKCodec(num_classes=100), "dkd", None),
    (TopKCodec(num_classes=100), "gdkd:k=9", "k=9 needs more exact classes than the 8 stored"),
    (TopKCodec(num_classes=100), "kd:temperature=1", "not stored at temperature 1; it serves kd, dkd"),
    (TopKCodec(num_classes=100, temperatures=(1.0, 4.0)), "kd:temperature=1", None),
    (TopKCodec(num_classes=100), "kd:standardize=1", "deviation over all classes"),
    (DenseCodec(num_classes=100), "kd:temperature=1.5,standardize=1", None),
    (DenseCodec(num_classes=100), "gdkd3:k=9", "k=9 needs more exact classes"),
]


@pytest.mark.parametrize(("codec", "loss", "said"), _REFUSALS)
def test_losses_are_refused_by_name(codec: Codec, loss: str, said: str | None) -> None:
    reason = codec.refusal(gc.loss(loss))
    assert reason == said if said is None else reason is not None and said in reason and "serves" in reason


@pytest.mark.parametrize("spec", ["topk:k=3,step=0.5", *_CODECS])
def test_codecs_round_trip_through_json(spec: str) -> None:
    codec = _fitted(spec, 10)
    again = codec_from_json(json.loads(json.dumps(codec.to_json())), codec.tables_bytes())
    assert again.to_json() == codec.to_json()
    logits, labels = _logits(50, 10)
    columns, same = codec.encode(logits, labels), again.encode(logits, labels)
    assert all(torch.equal(columns[name], same[name]) for name in columns)
    assert torch.equal(decode_rows(codec, columns, labels)[0], decode_rows(again, columns, labels)[0])


@pytest.mark.parametrize(
    "spec",
    [
        "zip",
        "topk:k=10",
        "topk:k=0",
        "topk:depth=3",
        "topk:step=0",
        "dense:dtype=int8",
        "dense:k",
        "auto:k=3",
        "transform:step=-1",
    ],
)
def test_wrong_codecs_are_refused(spec: str) -> None:
    logits, labels = _logits(50, 10)
    with pytest.raises(UsageError):
        Calibration(CodecChoice(codec=spec).request, logits, labels, stored_rows=50).choose()


@pytest.mark.parametrize(
    "stored", [{}, {"name": "zip"}, {"name": "topk", "num_classes": 10}, {"name": "dense", "num_classes": 10, "x": 1},
               {"name": "dense", "num_classes": 10, "num_top": 10}]
)  # fmt: skip
def test_wrong_manifest_codecs_are_refused(stored: dict[str, Any]) -> None:
    with pytest.raises(CacheError):
        codec_from_json(stored)


@pytest.mark.parametrize("num_classes", [2, 10])
def test_one_exact_class(tmp_path: Path, num_classes: int) -> None:
    """A cache of it is whole: of its top class nothing need be stored but which one it is."""
    logits = np.random.default_rng(0).normal(size=(1, 7, num_classes)).astype(np.float32)
    keys, labels = [str(row) for row in range(7)], np.zeros(7, np.int64)
    loss = gc.loss("kd:temperature=2")
    gc.pack(tmp_path / "c.zarr", logits, keys=keys, labels=labels, codec="topk:k=1,step=0.001", losses=[loss])
    cache = gc.open_cache(tmp_path / "c.zarr")
    assert cache.manifest.identity.codec.name == "topk"
    view, rows = cache.view(0), np.arange(7)
    assert view.topk(rows).classes[:, 0].tolist() == logits[0].argmax(-1).tolist()
    mass = torch.from_numpy(logits[0] / 2).softmax(-1).amax(-1)
    torch.testing.assert_close((view.logits(rows) / 2).softmax(-1).amax(-1), mass, atol=2e-3, rtol=0)
