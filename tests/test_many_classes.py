"""Codecs at any number of classes, with few rows of each, and whatever a teacher is like."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import gdkd_cache as gc
from gdkd_cache.building.options import CodecChoice
from gdkd_cache.codec.base import exact_top
from gdkd_cache.codec.calibration import Calibration, calibration_views
from gdkd_cache.codec.fidelity import decode_rows, encode_rows, measure
from gdkd_cache.codec.stored import codec_from_json
from gdkd_cache.codec.transform.quantise import quantise
from gdkd_cache.codec.transform.sequential import quantise_in_turn
from gdkd_cache.codec.transform.statistics import gather_statistics
from gdkd_cache.errors import CacheError
from gdkd_cache.threads import one_thread, one_worker


def _teacher(kind: str, rows: int, num_classes: int, views: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits [view, row, class] and labels, of a teacher that is sure, or unsure, or neither."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % num_classes
    # Directions of ever less variance, as real teachers' are, the same for every seed.
    number = min(num_classes, 300)
    directions = torch.randn(number, num_classes, generator=torch.Generator().manual_seed(7))
    directions *= (3 * torch.arange(1, number + 1) ** -0.8)[:, None]
    logits = torch.randn(views, rows, number, generator=generator) @ directions
    scale, lift = {"usual": (1.0, 4.0), "one-hot": (1.0, 60.0), "uniform": (1e-3, 0.0)}[kind]
    logits *= scale
    logits[:, torch.arange(rows), labels] += lift
    return logits, labels


def _calibration(spec: str, logits: Tensor, labels: Tensor, fidelity: float, stored_rows: int) -> Calibration:
    num_classes = logits.shape[-1]
    loss = "gdkd:k=3,w2=2" if num_classes > 5 else "kd"
    request = CodecChoice(codec=spec, fidelity=fidelity, losses=(gc.loss(loss),)).request
    return Calibration(request, logits, labels, stored_rows=stored_rows)


@pytest.mark.parametrize("fidelity", [0.02, 0.5])
@pytest.mark.parametrize("kind", ["usual", "one-hot", "uniform"])
@pytest.mark.parametrize(("num_classes", "rows"), [(2, 6), (10, 10), (100, 200)])
def test_few_rows_of_a_class(num_classes: int, rows: int, kind: str, fidelity: float) -> None:
    """One to three rows a class: what is promised holds on rows that the fit did not see; the partition is exact."""
    logits, labels = _teacher(kind, rows, num_classes)
    choice = _calibration("auto", logits, labels, fidelity, 10_000).choose()
    assert choice.worst_error <= fidelity
    unseen, theirs = _teacher(kind, 50, num_classes, seed=1)
    fidelity_there, _ = measure(choice.codec, unseen[0], theirs, (gc.loss("kd"),))
    assert fidelity_there.topk_agreement == 1


@pytest.mark.parametrize(("num_classes", "spec"), [(1000, "transform"), (2500, "transform:step=4")])
def test_many_classes(num_classes: int, spec: str) -> None:
    """Fewer rows than classes in several views: transform is fitted, and as faithful as it says."""
    logits, labels = _teacher("usual", 60, num_classes, views=2)
    choice = _calibration(spec, logits, labels, 0.3, 10**8).choose()
    assert choice.codec.name == "transform"
    assert choice.worst_error <= 0.3
    columns = encode_rows(choice.codec, logits[0, :20], labels[:20])
    columns = {name: column.numpy() for name, column in columns.items()}
    choice.codec.check(columns, labels[:20].numpy())


def test_the_curve_has_no_cliff() -> None:
    """From .3 to .02 bytes rise as the error falls, without a break, and every target is met."""
    logits, labels = _teacher("usual", 800, 120)
    sizes = []
    for fidelity in (0.3, 0.17, 0.1, 0.05, 0.02):
        calibration = _calibration("transform", logits, labels, fidelity, 10**6)
        choice = calibration.choose()
        assert choice.codec.name == "transform"
        assert choice.worst_error <= fidelity
        sizes.append(calibration.total_bytes(choice))
    assert sizes == sorted(sizes)
    assert all(finer < 2.5 * coarser for coarser, finer in itertools.pairwise(sizes))


def test_tables_are_counted() -> None:
    """Where few rows share the tables, fewer components are kept."""
    logits, labels = _teacher("usual", 300, 280)
    few, many = (_calibration("transform", logits, labels, 0.1, rows).choose().codec for rows in (400, 10**7))
    assert few.tables_bytes().size < 0.6 * many.tables_bytes().size


@pytest.mark.parametrize(("num_classes", "quantiser"), [(60, quantise_in_turn), (280, quantise)])
def test_threads_change_nothing(
    monkeypatch: pytest.MonkeyPatch, num_classes: int, quantiser: Callable[..., Tensor]
) -> None:
    """Rows are quantised by one thread each, in the main thread and in one that works beside it: the same bytes."""
    logits, labels = _teacher("usual", 1100, num_classes)
    codec = _calibration("transform:step=0.7", logits, labels, 0.1, 10**6).choose().codec
    before, encoded, numbers = torch.get_num_threads(), [], []

    def counted(*inputs: object) -> Tensor:
        numbers.append(torch.get_num_threads())
        return quantiser(*inputs)

    monkeypatch.setattr(f"gdkd_cache.codec.transform.codec.{quantiser.__name__}", counted)
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            encoded.append(codec.encode(logits[0], labels))
            assert torch.get_num_threads() == number
            with one_worker("beside") as worker:
                assert worker.submit(torch.get_num_threads).result() == 1
                torch.set_num_threads(number)  # what new threads would take over
                encoded.append(worker.submit(codec.encode, logits[0], labels).result())
    finally:
        torch.set_num_threads(before)
    assert set(numbers) == {1}
    assert len(numbers) == 4 * 3
    assert all(torch.equal(encoded[0][name], other[name]) for other in encoded for name in other)


def test_the_first_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A codec of 0.1.0 encodes as it did, so that what is repaired is the same bytes: a batch at a time, W^1.5."""
    logits, labels = _teacher("usual", 1100, 60)
    codec = _calibration("transform:step=0.7", logits, labels, 0.1, 10**6).choose().codec
    stored = codec.to_json()
    assert stored.pop("version") == 2
    first = codec_from_json(stored, codec.tables_bytes())
    called: list[tuple[str, int]] = []
    weights_seen: list[Tensor] = []

    def noted(name: str, call: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def quantised(residual: Tensor, weights: Tensor, *rest: Tensor) -> Tensor:
            called.append((name, len(residual)))
            weights_seen.append(weights)
            return call(residual, weights, *rest)

        return quantised

    module = "gdkd_cache.codec.transform.codec"
    monkeypatch.setattr(f"{module}.quantise_in_turn", noted("in turn", quantise_in_turn))
    columns = first.encode(logits[0], labels)
    assert called == [("in turn", 1100)]
    with one_thread():  # several would note their rows in any order
        codec.encode(logits[0], labels)
    assert called[1:] == [("in turn", 512), ("in turn", 512), ("in turn", 76)]
    others = torch.ones(60, dtype=torch.bool).scatter(0, exact_top(logits[0, :1], 8).classes[0], False)
    ours, later = ((own[0][others] * stored["weight_scale"]).log() for own in (weights_seen[0], weights_seen[1]))
    assert torch.allclose(ours / later, torch.tensor(1.5 / 1.2), rtol=1e-3)
    # What it wrote decodes alike with both.
    decoded = [decode_rows(one, columns, labels).logits for one in (first, codec)]
    assert torch.equal(*decoded)


def test_a_codec_of_a_later_version_is_refused() -> None:
    logits, labels = _teacher("usual", 40, 10)
    codec = _calibration("transform:step=0.7", logits, labels, 0.1, 10**6).choose().codec
    with pytest.raises(CacheError, match="codec transform has version 3; this gdkd-cache knows 1 to 2"):
        codec_from_json({**codec.to_json(), "version": 3}, codec.tables_bytes())


def test_what_the_first_view_says() -> None:
    """A teacher is examined by each image once, in the first view, however many views codecs are fitted to."""
    logits, labels = _teacher("usual", 42, 10, views=3)
    calibration = _calibration("dense", logits, labels, 0.1, 1000)
    first, theirs = calibration.labelled
    assert calibration.num_fitted == 32
    order = [row for row in range(42) if row % 4 != 3] + [row for row in range(42) if row % 4 == 3]
    assert torch.equal(first, logits[0, order])
    assert torch.equal(theirs, labels[order])
    alone = _calibration("dense", logits[:, :2], labels[:2], 0.1, 1000).labelled
    assert torch.equal(alone[0], logits[0, :2])


def test_views_of_calibration() -> None:
    """Enough views for 16 rows a class, as far as there are any and they fit."""
    assert calibration_views(4096, 100, 40) == 1
    assert calibration_views(1000, 1000, 40) == 16
    assert calibration_views(1000, 1000, 4) == 4
    assert calibration_views(12_000, 21_841, 40) == 1


def test_the_basis_of_many_classes_is_that_of_few() -> None:
    """It spans what rows vary in, as the covariance's eigenbasis does; both are orthonormal."""
    logits, labels = _teacher("usual", 300, 2100)
    wide = gather_statistics(logits[0], labels, num_top=4, losses=(gc.loss("kd"),), stored_rows=1000)
    gram = wide.basis.T @ wide.basis
    assert abs(gram - torch.eye(len(gram)).numpy()).max() < 1e-9
    top = exact_top(logits[0], 1).classes[:, 0].unique()
    assert wide.seen.tolist() == top.tolist()
    assert (wide.variances[:-1] > 0.5 * wide.variances[1:]).all()  # falling but for what the rows' number leaves open
    assert wide.variances[0] > 3 * wide.variances[100]
