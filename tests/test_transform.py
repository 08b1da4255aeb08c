"""The transform codec: patterns, heads, quantiser, calibration, and the error that was asked for."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import gdkd_cache as gc
from gdkd_cache import losses
from gdkd_cache.building.options import CodecChoice
from gdkd_cache.codec.calibration import Calibration, calibration_rows
from gdkd_cache.codec.fidelity import decode_rows, gradient, gradient_error
from gdkd_cache.codec.stored import codec_from_json
from gdkd_cache.codec.topk import TopKCodec
from gdkd_cache.codec.transform.codec import TransformCodec
from gdkd_cache.codec.transform.patterns import Patterns, column_costs, group_columns
from gdkd_cache.codec.transform.tables import TableSizes, tables_from_bytes
from gdkd_cache.errors import CacheError, GdkdCacheError, UsageError

_GDKD = gc.loss("gdkd")


def teacher_like(rows: int, num_classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of low effective rank around class means, as a network gives, and labels mostly its top-1."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(1).normal(size=(8, num_classes)) * 2
    means = np.random.default_rng(2).normal(size=(num_classes, num_classes)) + 8 * np.eye(num_classes)
    true = rng.integers(0, num_classes, rows)
    logits = means[true] + rng.normal(size=(rows, 8)) @ mix + rng.normal(size=(rows, num_classes)) * 0.3
    return torch.from_numpy(logits.astype(np.float32)), torch.from_numpy(true)


@pytest.fixture(scope="module")
def codec() -> TransformCodec:
    logits, labels = teacher_like(2000, 40)
    fitted = Calibration(CodecChoice(codec="transform").request, logits, labels, stored_rows=2000).choose().codec
    assert isinstance(fitted, TransformCodec)
    return fitted


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 60), st.integers(0, 2**31), st.floats(0.05, 40))
def test_patterns_round_trip(columns: int, rows: int, seed: int, scale: float) -> None:
    """Any int16 values, fitted or not: what no pattern names is escaped, never clipped."""
    rng = np.random.default_rng(seed)
    typical = np.rint(rng.laplace(size=(200, columns)) * scale).astype(np.int64)
    signed = rng.random(columns) < 0.7
    typical[:, ~signed] = np.abs(typical[:, ~signed])
    costs = column_costs(typical, signed)
    sizes = group_columns(costs, typical)
    assert sizes.sum() == columns
    patterns = Patterns(costs, sizes)
    values = np.rint(rng.laplace(size=(rows, columns)) * scale * 2).astype(np.int64)
    values[0] = rng.integers(-(2**15) + 1, 2**15, columns)
    packed, escape = patterns.pack(torch.from_numpy(values))
    assert packed.max() <= 254
    assert np.array_equal(patterns.unpack(packed, escape).numpy(), values)
    patterns.check(packed.numpy(), escape.numpy(), np.minimum(values.min(0), 0), np.maximum(values.max(0), 0))


def test_the_error_that_was_asked_for() -> None:
    """On other rows than it was fitted to, for each target and for several losses at once."""
    logits, labels = teacher_like(3000, 40)
    other, other_labels = teacher_like(1000, 40, seed=5)
    declared = (_GDKD, gc.loss("kd:temperature=2.0"), gc.loss("dkd:standardize=1"))
    sizes = []
    for target in (0.1, 0.3):
        request = CodecChoice(codec="transform", fidelity=target, losses=declared).request
        choice = Calibration(request, logits, labels, stored_rows=10_000).choose()
        assert 0.8 * target < choice.worst_error <= target
        columns = choice.codec.encode(other, other_labels)
        decoded, top = decode_rows(choice.codec, columns, other_labels)
        for loss in declared:
            assert gradient_error(loss, other, decoded, other_labels, top.classes) < 1.05 * target
        sizes.append(choice.bytes_per_view)
    assert sizes == sorted(sizes, reverse=True)


def test_the_gradient_error_is_its_definition() -> None:
    """Against the closed form for KD: the gradient of a uniform student is T (1/C - softmax(t/T))."""
    logits, labels = teacher_like(50, 10)
    kd = gc.loss("kd:temperature=3.0")
    top = losses.top_classes(logits, 5)
    expected = 3.0 * (0.1 - (logits / 3.0).softmax(-1))
    torch.testing.assert_close(gradient(kd, logits, labels, top), expected, rtol=1e-4, atol=1e-6)
    assert gradient_error(_GDKD, logits, logits + 7.0, labels, top) < 1e-5
    assert gradient_error(_GDKD, logits, torch.zeros_like(logits), labels, top) > 0.5


def test_calibration_is_deterministic(codec: TransformCodec) -> None:
    logits, labels = teacher_like(2000, 40)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        again = Calibration(CodecChoice(codec="transform").request, logits, labels, stored_rows=2000).choose().codec
    finally:
        torch.set_num_threads(threads)
    assert again.to_json() == codec.to_json()
    assert np.array_equal(again.tables_bytes(), codec.tables_bytes())


def test_auto_takes_the_smallest_that_meets_the_target() -> None:
    logits, labels = teacher_like(2000, 40)
    calibration = Calibration(CodecChoice(codec="auto", fidelity=0.1).request, logits, labels, stored_rows=100_000)
    assert isinstance(calibration.choose().codec, TransformCodec)
    assert calibration.fit(TopKCodec).worst_error > 0.1
    loose = Calibration(CodecChoice(codec="auto", fidelity=20.0).request, logits, labels, stored_rows=100_000)
    assert loose.total_bytes(loose.choose()) <= loose.total_bytes(loose.fit(TopKCodec))


@pytest.mark.parametrize(("rows", "num_classes"), [(1, 10), (2, 10), (7, 300), (40, 300), (1200, 2)])
def test_few_rows(rows: int, num_classes: int) -> None:
    """Too few rows for the classes, classes never seen, one row: a coarser fit, never a failure."""
    logits, labels = teacher_like(rows, num_classes)
    loss = gc.loss("kd") if num_classes < 6 else _GDKD
    request = CodecChoice(codec="transform:step=1", losses=(loss,)).request
    fitted = Calibration(request, logits, labels, stored_rows=rows).choose().codec
    other, other_labels = teacher_like(100, num_classes, seed=9)
    decoded, top = decode_rows(fitted, fitted.encode(other, other_labels), other_labels)
    assert torch.equal(top.classes, losses.top_classes(other, fitted.num_top))
    assert gradient_error(loss, other, decoded, other_labels, top.classes) < 1.0


def test_rows_unlike_the_calibration(codec: TransformCodec) -> None:
    """Constant rows, ties, one-hot rows with a gap of 200: widened, not clipped, and close."""
    logits = torch.zeros(6, 40)
    logits[1, 3] = 200.0
    logits[2] = torch.arange(40.0)
    logits[3] = torch.arange(40.0).flip(0).div(10, rounding_mode="floor")
    logits[4, ::2] = -200.0
    logits[5] = 50 * torch.randn(40, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 3, 1, 5, 7, 39])
    _, top = decode_rows(codec, codec.encode(logits, labels), labels)
    assert torch.equal(top.classes, losses.top_classes(logits, codec.num_top))
    centred = logits - logits.mean(-1, keepdim=True)
    values = centred.gather(-1, top.classes)
    assert (top.values - values).abs().max() <= codec.step
    with pytest.raises(GdkdCacheError, match="row 1 of the batch"):
        codec.encode(logits * torch.tensor([1, 1e6, 1, 1, 1, 1])[:, None], labels)


def test_large_numbers_of_classes() -> None:
    """C = 3000: a truncated basis without a C x C eigenproblem, top-1 coded by its id."""
    logits, labels = teacher_like(300, 3000)
    fitted = Calibration(CodecChoice(codec="transform:step=2").request, logits, labels, stored_rows=300).choose().codec
    assert isinstance(fitted, TransformCodec)
    assert fitted.num_components <= 256
    decoded, top = decode_rows(fitted, fitted.encode(logits, labels), labels)
    assert torch.equal(top.classes, losses.top_classes(logits, 8))
    assert gradient_error(_GDKD, logits, decoded, labels, top.classes) < 0.6
    assert calibration_rows(10**7, 21841) * 21841 <= 2**27
    assert calibration_rows(10**7, 100) == 4096
    assert calibration_rows(10**7, 1000) == 40_000
    assert calibration_rows(50, 1000) == 50


def test_damaged_tables_and_symbols_are_refused(codec: TransformCodec) -> None:
    stored, tables = codec.to_json(), codec.tables_bytes()
    for wrong in (tables[:-1], np.concatenate([tables, tables[:1]]), np.zeros(0, np.uint8)):
        with pytest.raises(CacheError, match="tables hold"):
            codec_from_json(stored, wrong)
    with pytest.raises(CacheError, match="step is missing"):
        codec_from_json({name: value for name, value in stored.items() if name != "step"}, tables)
    names = ("num_classes", "num_components", "num_top", "num_groups", "basis_scale")
    shape = {name: stored[name] for name in names if name in stored}
    assert np.array_equal(tables_from_bytes(tables, TableSizes(**shape)).to_bytes(), tables)
    logits, labels = teacher_like(10, 40)
    for column, values, said in (
        ("packed", (7, -1, 255), "row 7 names no pattern of its codec"),
        ("escape", (7, -1, 1), "row 7 holds a value where none is escaped"),
        ("escape", (3, 0, 0), None),
    ):
        columns = codec.encode(logits, labels)
        row, place, value = values
        columns[column][row, place] = value
        if said is None:
            decode_rows(codec, columns, labels)
            continue
        with pytest.raises(CacheError, match=said):
            decode_rows(codec, columns, labels)
    for place, value in ((-1, 40), (-1, -1), (-1 - codec.num_top - 1, 5000), (codec.num_components, -1)):
        columns = codec.encode(logits, labels)
        columns["packed"][5:] = 254
        columns["escape"][5:, place] = value
        with pytest.raises(CacheError, match="row 5 holds a rank or a code beyond the classes"):
            decode_rows(codec, columns, labels)


_PACKED = {"codec": "transform", "fidelity": 0.1}


def test_pack(tmp_path: Path) -> None:
    """A packed cache gives the partition and the gradient; the same logits in another float type or layout too."""
    views = torch.stack([teacher_like(500, 40, seed)[0] for seed in (0, 0)])
    views[1] += 0.1 * torch.randn(views[1].shape, generator=torch.Generator().manual_seed(0))
    labels = teacher_like(500, 40)[1]
    keys = [f"row {i}" for i in range(500)]
    manifest = gc.pack(tmp_path / "a.zarr", views, keys=keys, labels=labels, **_PACKED)
    again = gc.pack(tmp_path / "b.zarr", [view.numpy() for view in views], keys=keys, labels=labels.tolist(), **_PACKED)
    assert manifest.digest == again.digest
    assert gc.pack(tmp_path / "a.zarr", views, keys=keys, labels=labels, **_PACKED).digest == manifest.digest
    cache = gc.open_cache(tmp_path / "a.zarr")
    assert (cache.num_views, cache.num_rows, cache.keys) == (2, 500, keys)
    for number in (0, 1):
        view = cache.view(number)
        top = view.topk(range(500))
        assert torch.equal(top.classes, losses.top_classes(views[number], 8))
        assert torch.equal(view.logits([7, 3]).gather(-1, top.classes[[7, 3]]), top.values[[7, 3]])
        assert gradient_error(_GDKD, views[number], view.logits(range(500)), labels, top.classes) < 0.12
    assert manifest.identity.fidelity.topk_agreement == 1.0
    for loss in ("kd", "dkd", "gdkd", "gdkd3"):
        cache.require(gc.loss(f"{loss}:temperature=1.7,standardize=1"))
    with pytest.raises(CacheError, match="names no recipe"):
        cache.dataset(gc.open_source("digits"))
    with pytest.raises(GdkdCacheError, match="holds another build"):
        gc.pack(tmp_path / "a.zarr", views + 1, keys=keys, labels=labels, **_PACKED)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"keys": ["a"] * 20}, "1 distinct keys for 20 rows"),
        ({"labels": [9] * 20}, "labels are from 9 to 9; give class ids of 0 to 8"),
        ({"labels": [0] * 19}, r"labels are \[19\]"),
        ({"logits": np.zeros((1, 20, 1), np.float32)}, "1 classes"),
        ({"logits": np.zeros((20, 9), np.float32)}, r"a view's logits are \[9\]"),
        ({"logits": []}, "no views"),
        ({"logits": np.full((1, 20, 9), np.nan, np.float32)}, "view 0: the logits of 'k0' hold NaN"),
        ({"fidelity": 0.0}, "fidelity is 0"),
        ({"codec": "zip"}, "codec is 'zip'"),
        ({"losses": ("gdkd:k=9",)}, "needs more than 9 classes"),
        ({"classes": ["a"]}, "1 class names"),
    ],
)
def test_wrong_input_to_pack(tmp_path: Path, change: dict[str, object], said: str) -> None:
    good: dict[str, object] = {
        "logits": np.random.default_rng(0).normal(size=(1, 20, 9)).astype(np.float32),
        "keys": [f"k{i}" for i in range(20)],
        "labels": [0] * 20,
    }
    with pytest.raises(UsageError, match=said):
        gc.pack(tmp_path / "a.zarr", **(good | change))  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "a.zarr" / "manifest.json").exists()


_GOLDEN = Path(__file__).parent / "golden" / "transform.zarr"


def test_golden_cache() -> None:
    """A cache that the first version wrote still decodes to the same values; else bump the format."""
    cache = gc.open_cache(_GOLDEN)
    expected = json.loads((_GOLDEN.parent / "transform.json").read_text())
    assert cache.manifest.digest == expected["digest"]
    view = cache.view(1)
    top = view.topk(range(cache.num_rows))
    assert top.classes.tolist() == expected["top"]
    torch.testing.assert_close(
        view.logits(range(cache.num_rows)), torch.tensor(expected["logits"]), rtol=1e-5, atol=1e-4
    )
