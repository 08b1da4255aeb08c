"""Views that are predicted from the first ones of their image: the same logits and bytes however they come about."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import build_small, counting, forge_object, fork
from torch import Tensor

import gdkd_cache as gc
from gdkd_cache import Cache, open_cache
from gdkd_cache.building import cooperate
from gdkd_cache.building.options import CodecChoice, PlanOptions
from gdkd_cache.building.plan import plan
from gdkd_cache.building.repair import repair
from gdkd_cache.checking.verify import verify
from gdkd_cache.codec import calibration
from gdkd_cache.codec.base import References
from gdkd_cache.codec.calibration import Calibration, sampled_rows, sampled_views
from gdkd_cache.codec.fidelity import decode_rows, encode_rows
from gdkd_cache.codec.stored import codec_from_json
from gdkd_cache.codec.transform.codec import TransformCodec
from gdkd_cache.codec.views import SampledViews
from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import CacheError, MismatchError, UsageError
from gdkd_cache.models.network import Network
from gdkd_cache.sharing.convert import from_sidecars, to_sidecars
from gdkd_cache.sharing.copy import copy
from gdkd_cache.sharing.merge import merge
from gdkd_cache.store.writer import CacheWriter

_GDKD = gc.loss("gdkd")
_OPTIONS: dict[str, Any] = {"codec": "transform:references=3", "shard_rows": 70, "num_views": 7}


def views_like(num_views: int, rows: int, num_classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Views [view, row, class] of images that differ more than their views do, and labels."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(1).normal(size=(8, num_classes)) * 2
    labels = rng.integers(0, num_classes, rows)
    image = rng.normal(size=(1, rows, 8)) + rng.normal(size=(num_views, rows, 8)) * 0.3
    logits = 6 * np.eye(num_classes)[labels] + image @ mix + rng.normal(size=(num_views, rows, num_classes)) * 0.2
    return torch.from_numpy(logits.astype(np.float32)), torch.from_numpy(labels)


def calibrated(num_views: int, references: int | None, *, fidelity: float = 0.1, rows: int = 1200) -> Calibration:
    logits, labels = views_like(num_views, rows, 20)
    weights = torch.from_numpy(np.random.default_rng(0).integers(1, 257, (num_views, num_views, rows)).astype(np.int16))
    views = SampledViews(logits=logits, labels=labels, weights=weights, num_views=40)
    spec = "transform" if references is None else f"transform:references={references}"
    request = CodecChoice(codec=spec, fidelity=fidelity).request
    return Calibration(request, logits[0], labels, stored_rows=40 * 10_000, views=views)


@pytest.fixture(scope="module")
def codec() -> TransformCodec:
    fitted = calibrated(5, 3).choose().codec
    assert isinstance(fitted, TransformCodec)
    assert fitted.num_references == 3
    return fitted


def test_views_are_smaller_at_the_same_error() -> None:
    alone = calibrated(6, 0).choose()
    together = calibrated(6, 4).choose()
    assert together.worst_error <= 0.1
    assert together.bytes_per_view < 0.85 * alone.bytes_per_view
    chosen = calibrated(6, None).choose()
    assert chosen.codec.num_references == 4
    assert chosen.codec.to_json() == together.codec.to_json()


def test_it_is_what_its_json_and_tables_say(codec: TransformCodec) -> None:
    again = codec_from_json(codec.to_json(), codec.tables_bytes())
    assert again.to_json() == codec.to_json()
    assert np.array_equal(again.tables_bytes(), codec.tables_bytes())
    stored = codec.to_json()
    for wrong in ({"references": 65}, {"num_predicted": 0}, {"num_reference_groups": 0}, {"references": -1}):
        with pytest.raises(CacheError, match=r"the codec|the manifest's codec"):
            codec_from_json(stored | wrong, codec.tables_bytes())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.01, 30), count=st.integers(0, 3), data=st.data())
def test_any_rows_round_trip(codec: TransformCodec, seed: int, scale: float, count: int, data: st.DataObject) -> None:
    """Whatever the references say: the exact classes stay exact, and a row decodes alone as in any batch."""
    rng = np.random.default_rng(seed)
    rows = data.draw(st.integers(1, 9))
    logits = torch.from_numpy((rng.normal(size=(rows, 20)) * scale).astype(np.float32))
    labels = torch.from_numpy(rng.integers(0, 20, rows))
    references = None
    if count:
        deviations = rng.integers(-127, 128, (rows, count, codec.num_predicted)).astype(np.int8)
        weights = rng.integers(1, 257, (rows, count)).astype(np.int16)
        references = References(torch.from_numpy(deviations), torch.from_numpy(weights))
    columns = codec.encode(logits, labels, references)
    decoded, top = decode_rows(codec, columns, labels, references=references)
    assert torch.equal(top.classes, torch.argsort(logits, dim=-1, descending=True, stable=True)[:, : codec.num_top])
    kept = int(rng.integers(rows))
    one = {name: column[kept : kept + 1] for name, column in columns.items()}
    known = None if references is None else References(*(part[kept : kept + 1] for part in references))
    alone, _ = decode_rows(codec, one, labels[kept : kept + 1], references=known)
    assert torch.equal(alone[0], decoded[kept])
    said = codec.deviations(columns, labels, references) if count < 3 else None
    assert said is None or torch.equal(codec.deviations(one, labels[kept : kept + 1], known)[0], said[kept])


def test_prediction_is_its_definition(codec: TransformCodec) -> None:
    """Against whole numbers of Python: floor of the weighted mean times the factor, and a half."""
    rng = np.random.default_rng(3)
    deviations = rng.integers(-127, 128, (6, 2, codec.num_predicted)).astype(np.int8)
    weights = rng.integers(1, 257, (6, 2)).astype(np.int16)
    said = codec._common(References(torch.from_numpy(deviations), torch.from_numpy(weights)))
    factors = codec.tables.factors[1].tolist()
    for row in range(6):
        w = [int(one) for one in weights[row]]
        for component, factor in enumerate(factors):
            total = sum(x * int(d) for x, d in zip(w, deviations[row, :, component], strict=True))
            expected = (2 * 2 * factor * total + 256 * sum(w)) // (2 * 256 * sum(w))
            assert int(said[row, component]) == expected


def test_padding_that_no_encoder_writes_is_refused(codec: TransformCodec) -> None:
    logits, labels = views_like(1, 30, 20)
    columns = encode_rows(codec, logits[0], labels)
    groups = [len(codec.tables.reference_groups), len(codec.tables.groups)]
    assert columns["packed"].shape[1] == max(groups)
    assert groups[0] > groups[1]
    columns["packed"][:], columns["escape"][:] = 0, 0
    columns["packed"][5, -1] = 3
    stored = {name: column.numpy() for name, column in columns.items()}
    with pytest.raises(CacheError, match="row 5 holds more bytes than its view has"):
        codec.check(stored, labels.numpy(), 3)


@pytest.mark.parametrize(
    ("spec", "rows", "views", "expected"),
    [
        ("auto", 50_000, 40, 10),
        ("auto", 50_000, 16, 10),
        ("auto", 50_000, 8, 6),
        ("auto", 50_000, 7, 0),
        ("auto", 100, 40, 0),
        ("auto", 256, 2, 0),
        ("topk", 50_000, 40, 0),
        ("transform:references=0", 50_000, 40, 0),
        ("transform:references=3", 10, 4, 4),
    ],
)
def test_when_views_are_sampled(spec: str, rows: int, views: int, expected: int) -> None:
    """Where references can pay: from eight views on, unless they are asked for."""
    assert sampled_views(CodecChoice(codec=spec).request, rows, views)[0] == expected


def test_references_that_cannot_be() -> None:
    request = CodecChoice(codec="transform:references=4").request
    with pytest.raises(UsageError, match="from the first 4, and there are 4 views"):
        sampled_views(request, 100, 4)
    with pytest.raises(UsageError, match="nobody knows"):
        sampled_views(request, 100, 9, "nobody knows")


def test_sampled_rows_keep_the_held_out_ones() -> None:
    rows = sampled_rows(4000, 1000)
    assert len(rows) == 1000
    assert np.array_equal(rows % 4, np.arange(1000) % 4)


def _contents(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def _logits(path: Path | Cache, number: int) -> Tensor:
    cache = path if isinstance(path, Cache) else open_cache(path)
    return cache.view(number).logits(range(cache.num_rows))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, digits: ArraySource, teacher: Network) -> Path:
    """Seven views in four shards each, the last four predicted from the first three; not to be changed."""
    path = tmp_path_factory.mktemp("whole") / "a.zarr"
    build_small(path, digits, teacher, **_OPTIONS)
    assert open_cache(path).codec.num_references == 3
    return path


@pytest.fixture
def cache(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "a.zarr"))


def test_a_view_alone_as_after_others(whole: Path, digits: ArraySource, teacher: Network) -> None:
    """In any order of views and rows, and what the teacher said, up to the error that was asked for."""
    cache = open_cache(whole)
    in_order = [_logits(cache, number) for number in range(7)]
    for number in (6, 2, 0):
        alone = open_cache(whole).view(number)
        rows = [200, 3, 3, 77]
        assert torch.equal(alone.logits(rows), in_order[number][rows])
        assert torch.equal(alone.logits([5])[0], in_order[number][5])
    assert verify(whole, deep=True, source=digits, teacher=teacher).problems == ()


@pytest.mark.parametrize("images_in_memory", [0, None])
def test_interrupted_builds_give_the_same_bytes(
    whole: Path, tmp_path: Path, digits: ArraySource, teacher: Network, images_in_memory: int | None
) -> None:
    """In the middle of the references, and after them."""
    out = tmp_path / "a.zarr"
    for rows in (900, 900, 600):
        interrupted, _ = counting(teacher, fail_after=rows)
        with pytest.raises(KeyboardInterrupt):
            build_small(out, digits, interrupted, images_in_memory=images_in_memory, **_OPTIONS)
    build_small(out, digits, teacher, images_in_memory=images_in_memory, **_OPTIONS)
    assert _contents(out) == _contents(whole)


def test_a_reference_that_is_damaged_before_the_end(
    whole: Path, tmp_path: Path, digits: ArraySource, teacher: Network
) -> None:
    """It is computed again before what is predicted from it."""
    out = tmp_path / "a.zarr"
    interrupted, _ = counting(teacher, fail_after=1800)
    with pytest.raises(KeyboardInterrupt):
        build_small(out, digits, interrupted, **_OPTIONS)
    (out / "packed/c/1/0/0").write_bytes(b"x")
    build_small(out, digits, teacher, **_OPTIONS)
    assert _contents(out) == _contents(whole)


def test_a_shard_of_a_place_that_another_build_has_is_not_forgotten(
    whole: Path, tmp_path: Path, digits: ArraySource, teacher: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.zarr"
    interrupted, _ = counting(teacher, fail_after=1800)
    with pytest.raises(KeyboardInterrupt):
        build_small(out, digits, interrupted, **_OPTIONS)
    (out / "packed/c/1/0/0").write_bytes(b"x")
    forget = CacheWriter.forget

    def late(self: CacheWriter, view: int, shard: int) -> None:
        other, _ = counting(teacher, fail_after=1800)
        with pytest.raises(KeyboardInterrupt):
            build_small(out, digits, other, **_OPTIONS, seed=1, force=True)
        forget(self, view, shard)

    monkeypatch.setattr(CacheWriter, "forget", late)
    with pytest.raises(MismatchError, match="given to another build"):
        build_small(out, digits, teacher, **_OPTIONS)
    assert (out / "ledger/1/0.json").exists()


def test_processes_build_together(
    whole: Path, tmp_path: Path, digits: ArraySource, teacher: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cooperate, "POLL_SECONDS", 0.05)
    out = tmp_path / "a.zarr"
    processes = [fork(lambda: build_small(out, digits, teacher, **_OPTIONS)) for _ in range(2)]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert _contents(out) == _contents(whole)


@pytest.mark.parametrize(
    "names",
    [
        ["packed/c/1/2/0", "escape/c/0/2/0", "packed/c/5/2/0", "packed/c/2/1/0"],
        ["tables/c/0", "packed/c/6/0/0"],
        ["image_size/c/1/0", "packed/c/4/1/0"],
        ["image_size/c/2/0", "source_check/c/2/0", "source_check/c/0/0"],
    ],
)
def test_repair(cache: Path, whole: Path, digits: ArraySource, teacher: Network, names: list[str]) -> None:
    for name in names:
        (cache / name).write_bytes(b"x")
    result = repair(cache, source=digits, teacher=teacher)
    assert result.problems == ()
    assert result.restored == tuple(sorted(names))
    assert _contents(cache) == _contents(whole)


def test_views_that_stay_keep_their_logits(cache: Path, whole: Path) -> None:
    """Also where fewer views than references are left."""
    for kept in (5, 2):
        (cache / f"packed/c/{kept}/0/0").write_bytes(b"x")
        assert repair(cache, drop=True).problems == ()
        assert open_cache(cache).num_views == kept
        assert torch.equal(_logits(cache, kept - 1), _logits(whole, kept - 1))


@pytest.mark.parametrize("views", [range(5), range(2), range(1, 3), range(2, 5), range(4, 7)])
def test_a_part_brings_what_predicts_it(whole: Path, tmp_path: Path, views: range) -> None:
    out = tmp_path / "part.zarr"
    copy(whole, out, views=views)
    assert verify(out, deep=True).problems == ()
    for number in views:
        assert torch.equal(_logits(out, number), _logits(whole, number))
    again = tmp_path / "again.zarr"
    copy(out, again, views=views[-1:])
    assert torch.equal(_logits(again, views[-1]), _logits(whole, views[-1]))


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_parts_join_to_the_whole(whole: Path, tmp_path: Path, cut: int) -> None:
    parts = [tmp_path / "1.zarr", tmp_path / "2.zarr"]
    for part, views in zip(parts, (range(cut), range(cut, 7)), strict=True):
        copy(whole, part, views=views)
    merge(parts, tmp_path / "merged.zarr")
    assert _contents(tmp_path / "merged.zarr") == _contents(whole)


def test_a_part_that_others_build(whole: Path, tmp_path: Path, digits: ArraySource, teacher: Network) -> None:
    """With the codec and the references of a cache that has them."""
    first, second = tmp_path / "1.zarr", tmp_path / "2.zarr"
    copy(whole, first, views=range(4))
    own = _OPTIONS | {"first_view": 4, "num_views": 3, "codec": "auto"}
    with pytest.raises(UsageError, match="codec-from"):
        build_small(second, digits, teacher, **(own | {"codec": "transform:references=2"}))
    interrupted, _ = counting(teacher, fail_after=400)
    with pytest.raises(KeyboardInterrupt):
        build_small(second, digits, interrupted, codec_from=first, **own)
    build_small(second, digits, teacher, codec_from=first, **own)
    assert torch.equal(_logits(second, 6), _logits(whole, 6))
    merge([second, first], tmp_path / "merged.zarr")
    assert _contents(tmp_path / "merged.zarr") == _contents(whole)


def test_parts_of_other_references(whole: Path, tmp_path: Path, digits: ArraySource, teacher: Network) -> None:
    """The same codec over views that another run of the teacher gave otherwise: not parts of one cache."""
    first, second = tmp_path / "1.zarr", tmp_path / "2.zarr"
    copy(whole, first, views=range(4))
    copy(whole, second, views=range(4, 7))
    layout = open_cache(second).reference_layouts["packed"]
    shard = layout.decode({name: (second / name).read_bytes() for name in layout.object_names(1)}, 1)[:70].copy()
    shard[3] = shard[(shard != shard[3]).any(-1)][0]
    for name, data in layout.encode(shard, view=1).items():
        forge_object(second, name, data)
    with pytest.raises(MismatchError, match="predicted from view 1, which differs"):
        merge([first, second], tmp_path / "merged.zarr")


def test_sidecars(whole: Path, tmp_path: Path, images: Path, digits: ArraySource) -> None:
    """There and back to the byte; read shard by shard they give the same logits."""
    streamed = gc.open_source(f"wds:{images}/*.tar", stream=True)
    to_sidecars(whole, tmp_path / "sidecars", streamed)
    for number in (6, 1):
        assert torch.equal(_logits(tmp_path / "sidecars", number), _logits(whole, number))
    from_sidecars(tmp_path / "sidecars", tmp_path / "back.zarr")
    assert _contents(tmp_path / "back.zarr") == _contents(whole)
    copy(tmp_path / "sidecars", tmp_path / "part.zarr", views=range(4, 6))
    assert torch.equal(_logits(tmp_path / "part.zarr", 5), _logits(whole, 5))
    with pytest.raises(UsageError, match="is a part of a cache"):
        to_sidecars(tmp_path / "part.zarr", tmp_path / "other", streamed)
    data = open_cache(tmp_path / "sidecars").dataset(streamed)
    direct = open_cache(whole).view(5)
    for _, _, said in data.loader(5, batch_size=60, shuffle=True):
        assert torch.equal(said.logits, direct.logits(said.rows))


def test_packed_logits_predict_by_their_mean(tmp_path: Path) -> None:
    logits, labels = views_like(7, 300, 20)
    keys = [str(row) for row in range(300)]
    gc.pack(tmp_path / "a.zarr", logits, keys=keys, labels=labels, codec="transform:references=4")
    gc.pack(tmp_path / "b.zarr", logits, keys=keys, labels=labels, codec="transform:references=0")
    assert verify(tmp_path / "a.zarr", deep=True).problems == ()
    a, b = open_cache(tmp_path / "a.zarr"), open_cache(tmp_path / "b.zarr")
    size = sum(record.size for name, record in a.manifest.objects.items() if name.startswith("packed/c/6"))
    assert size < 0.8 * sum(r.size for name, r in b.manifest.objects.items() if name.startswith("packed/c/6"))
    assert torch.equal(a.view(6).topk(range(300)).classes, b.view(6).topk(range(300)).classes)


def test_a_damaged_reference_is_told_of(cache: Path) -> None:
    (cache / "packed/c/1/0/0").write_bytes(b"x")
    assert len(_logits(cache, 0))
    with pytest.raises(CacheError, match=r"packed/c/1/0/0"):
        open_cache(cache).view(5)


def test_references_that_fill_memory(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the manifest says of them is bounded by what the cache holds."""
    monkeypatch.setattr(TransformCodec, "num_predicted", property(lambda _: 2**30))
    with pytest.raises(CacheError, match="what predicts its views would take 824,633,720,832 bytes: it is forged"):
        open_cache(whole).view(5)


def test_plan_says_what_references_take(
    tmp_path: Path, digits: ArraySource, teacher: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "_FEWEST_SAMPLED", 64)
    # So few rows pay for no table; taking the fewest bytes is tested above.
    monkeypatch.setattr(Calibration, "bytes_over_views", lambda self, codec: 1.0 - codec.num_references / 10)
    monkeypatch.setattr(Calibration, "table_bytes", lambda self, codec: 0.0)
    said = plan(PlanOptions(num_views=40, batch_size=64, num_workers=0, accept_teacher=True), digits, teacher)
    assert any(row.references for row in said.rows)
    for row in said.rows:
        assert row.reference_bytes % (256 * max(row.references, 1)) == 0
        assert (row.reference_bytes > 0) == (row.references > 0)
    manifest = build_small(tmp_path / "a.zarr", digits, teacher, codec="auto", num_views=40).manifest
    assert manifest.identity.codec.references
    (chosen,) = (row for row in said.rows if row.chosen)
    assert chosen.num_objects == len(manifest.objects) + 1  # and the manifest
