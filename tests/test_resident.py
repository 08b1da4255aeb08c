"""Views in memory: packed as they are stored, read once where they fit, and decoded in blocks to the same bits."""

import threading
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from expanded import expanded
from hypothesis import given, settings
from hypothesis import strategies as st
from small import build_small
from torch import Tensor

from gdkd_cache import open_cache
from gdkd_cache.building.options import CodecChoice
from gdkd_cache.cache import dataset, held
from gdkd_cache.cache.cache import Cache
from gdkd_cache.cache.dataset import TeacherBatch
from gdkd_cache.cache.resident import SparseColumn
from gdkd_cache.codec.base import Decoded
from gdkd_cache.codec.calibration import Calibration
from gdkd_cache.codec.dense import DenseCodec
from gdkd_cache.codec.fidelity import decode_rows
from gdkd_cache.codec.transform import codec as transform
from gdkd_cache.codec.transform.codec import TransformCodec
from gdkd_cache.data.source import ArraySource
from gdkd_cache.models.network import Network
from gdkd_cache.store.cells import Cells

_GOLDEN = Path(__file__).parent / "golden" / "transform.zarr"


def _same(found: Decoded, codec: TransformCodec, columns: dict[str, Tensor], labels: Tensor) -> bool:
    wanted = expanded(codec, columns, labels)
    return all(torch.equal(*pair) for pair in zip((found.logits, *found.top), wanted, strict=True))


def test_a_cache_of_the_first_version_decodes_to_the_same_bits() -> None:
    cache = open_cache(_GOLDEN)
    assert isinstance(cache.codec, TransformCodec)
    rows = np.random.default_rng(0).permutation(cache.num_rows)[:300]
    for number in cache.view_numbers:
        columns = {name: torch.from_numpy(cache.column(name, number)[rows]) for name in ("packed", "escape")}
        assert _same(cache.view(number).decode(rows), cache.codec, columns, torch.from_numpy(cache.labels[rows]))


@lru_cache
def _fitted(num_classes: int, num_top: int) -> TransformCodec:
    logits = 3 * torch.randn((400, num_classes), generator=torch.Generator().manual_seed(0))
    labels = logits.argmax(-1).where(torch.arange(400) % 3 > 0, torch.arange(400) % num_classes)
    request = CodecChoice(codec=f"transform:step=1,k={num_top}", losses=("kd",)).request
    codec = Calibration(request, logits, labels, stored_rows=400).choose().codec
    assert isinstance(codec, TransformCodec)
    return codec


@pytest.mark.parametrize(("num_classes", "num_top"), [(2, 1), (3, 2), (10, 1), (10, 9), (40, 8), (2100, 5)])
@settings(max_examples=15, deadline=None)
@given(st.integers(1, 30), st.sampled_from([0.0, 1.0, 3.0, 30.0]), st.integers(0, 2**31))
def test_any_rows_decode_to_the_same_bits(num_classes: int, num_top: int, rows: int, scale: float, seed: int) -> None:
    """Ties, escapes, deep ranks, one class or all but one kept; alone, together, or in pieces."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn((rows, num_classes), generator=generator)
    labels = torch.randint(num_classes, (rows,), generator=generator)
    codec = _fitted(num_classes, num_top)
    columns = codec.encode(logits, labels)
    assert _same(decode_rows(codec, columns, labels), codec, columns, labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transform, "_DECODE_VALUES", 7 * num_classes)
        assert _same(decode_rows(codec, columns, labels), codec, columns, labels)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 6), st.integers(0, 2**31))
def test_sparse_columns(width: int, rows: int, nonzero: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    dense = np.zeros((rows, 2, width), np.int16)
    dense.reshape(-1)[rng.integers(0, dense.size, nonzero)] = rng.integers(-9, 9, nonzero)
    column = SparseColumn(dense)
    assert column.nbytes <= 10 * nonzero
    for taken in (rng.integers(0, rows, 2 * rows), np.arange(rows), np.zeros(0, np.int64)):
        assert np.array_equal(column[taken], dense[taken])
        assert column[taken].dtype == dense.dtype


def test_a_view_is_its_packed_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading one decodes nothing, and what stays is what is stored, but for the escapes' zeros."""
    cache = open_cache(_GOLDEN)
    monkeypatch.setattr(TransformCodec, "decode", None)
    packed, escape = (cache.column(name, 0) for name in ("packed", "escape"))
    assert cache.view(0).nbytes <= packed.nbytes + 10 * np.count_nonzero(escape)


def _epochs(cache: Cache, source: ArraySource, count: int, **options: Any) -> list[list[TeacherBatch]]:
    data = cache.dataset(source)
    return [[teacher for *_, teacher in data.loader(epoch, **options)] for epoch in range(count)]


@pytest.mark.parametrize(
    ("room", "views", "loads"),
    [(2**28, None, [0, 1, 2]), (0, None, [0, 1, 2, 0, 1, 2]), (2**28, "2,0", [2, 0]), (0, "1", [1])],
)
def test_views_that_fit_are_read_once(
    tmp_path: Path,
    few: ArraySource,
    teacher: Network,
    monkeypatch: pytest.MonkeyPatch,
    room: int,
    views: str | None,
    loads: list[int],
) -> None:
    """Of three views in five epochs; else one is read again whenever it comes round, ahead of its epoch."""
    build_small(tmp_path / "c.zarr", few, teacher, codec="dense", num_views=3)
    monkeypatch.setattr(held, "_RESIDENT_BYTES", room)
    loaded: list[int] = []
    columns = Cache.columns

    def counted(cache: Cache, names: Iterable[str], view: int) -> dict[str, np.ndarray]:
        loaded.append(view)
        return columns(cache, names, view)

    data = open_cache(tmp_path / "c.zarr").dataset(few, views=views)
    monkeypatch.setattr(Cache, "columns", counted)
    for epoch in range(5):
        for *_, teacher_said in data.loader(epoch, batch_size=64):
            assert teacher_said.view == loads[epoch % len(set(loads))]
    data._held._executor.shutdown()
    assert loaded == loads


@pytest.mark.parametrize("codec", ["topk", "dense", "transform:step=0.3"])
def test_blocks_change_no_bit(
    caches: dict[str, Path], few: ArraySource, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    """Whatever is decoded together, a batch is what the view gives of its rows; also where an epoch goes on."""
    cache = open_cache(caches[codec])
    options: dict[str, Any] = {"batch_size": 7, "shuffle": True}
    wanted = _epochs(cache, few, 2, **options)
    for rows in (1, 20):
        monkeypatch.setattr(dataset, "_BLOCK_ROWS", rows)
        for first in (0, 2):
            found = _epochs(cache, few, 2, first_batch=first, **options)
            for epoch, batches in enumerate(found):
                assert len(batches) == len(wanted[epoch]) - first
                view = cache.view(epoch)
                for ours, theirs in zip(batches, wanted[epoch][first:], strict=True):
                    assert torch.equal(ours.rows, theirs.rows)
                    assert torch.equal(ours.logits, theirs.logits)
                    assert torch.equal(ours.logits, view.logits(ours.rows))
                    assert torch.equal(ours.top, view.topk(ours.rows).classes)


def test_helping_threads_compute_alone(
    tmp_path: Path, caches: dict[str, Path], few: ArraySource, teacher: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What loads views, and what encodes in a build, runs torch in one thread; the main thread keeps its own."""
    seen: list[tuple[bool, int]] = []

    def noted(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            main = threading.current_thread() is threading.main_thread()
            seen.append((main, torch.get_num_threads()))
            return method(*arguments)

        return call

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        monkeypatch.setattr(DenseCodec, "check", noted(DenseCodec.check))
        monkeypatch.setattr(DenseCodec, "decode", noted(DenseCodec.decode))
        _epochs(open_cache(caches["dense"]), few, 2, batch_size=64)
        assert set(seen) == {(False, 1), (True, 2)}
        seen.clear()
        monkeypatch.setattr(Cells, "encode", noted(Cells.encode))
        build_small(tmp_path / "c.zarr", few, teacher, codec="dense")
        assert (False, 1) in seen
        assert (False, 2) not in seen
    finally:
        torch.set_num_threads(before)
