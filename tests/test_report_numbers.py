"""The numbers of a report against slow references, one view and row at a time."""

from itertools import combinations

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from gdkd_cache.losses import gdkd, kd
from gdkd_cache.losses.levels import level_gradients
from gdkd_cache.losses.partition import top_classes
from gdkd_cache.report.numbers.calibration import reliability, shares
from gdkd_cache.report.numbers.classes import by_class, confusion, differing, mean_predictions, without_top
from gdkd_cache.report.numbers.levels import pulls_at_uniform
from gdkd_cache.report.numbers.said import most_said, summarise

_VIEWS, _ROWS, _CLASSES = 5, 60, 7


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(scale=3, size=(_VIEWS, _ROWS, _CLASSES)).astype(np.float32)


@pytest.fixture
def labels() -> np.ndarray:
    """Of six of the seven classes."""
    return np.random.default_rng(1).integers(0, _CLASSES - 1, _ROWS)


def _probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    return torch.from_numpy(logits).double().div(temperature).softmax(-1).numpy()


def _entropy(p: np.ndarray) -> float:
    return -sum(value * np.log(value) for value in p if value > 0)


@pytest.fixture(params=[2**22, 10 * _CLASSES])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows at once, or ten at a time."""
    monkeypatch.setattr("gdkd_cache.report.numbers.said._AT_ONCE", request.param)


@pytest.mark.usefixtures("blocks")
def test_said(logits: np.ndarray, labels: np.ndarray) -> None:
    said, p = summarise(logits, labels), _probabilities(logits)
    for row in range(_ROWS):
        for view in range(_VIEWS):
            assert said.first[view, row] == p[view, row].argmax()
            assert said.confidence[view, row] == pytest.approx(p[view, row].max(), abs=1e-6)
            assert said.own[view, row] == pytest.approx(p[view, row, labels[row]], abs=1e-6)
            assert said.entropy[view, row] == pytest.approx(_entropy(p[view, row]), abs=1e-5)
        mean = p[:, row].mean(0)
        assert said.mean_entropy[row] == pytest.approx(_entropy(mean), abs=1e-5)
        # Jensen-Shannon's divergence is also the mean divergence from the mean.
        apart = np.mean([np.sum(one * np.log(one / mean)) for one in p[:, row]])
        assert said.divergence[row] == pytest.approx(apart, abs=1e-5)
        pairs = [p[i, row].argmax() == p[j, row].argmax() for i, j in combinations(range(_VIEWS), 2)]
        assert said.agreement[row] == pytest.approx(np.mean(pairs))
        assert most_said(said.first)[row] == np.bincount(p[:, row].argmax(-1)).max()
    assert 0 < said.agreement.mean() < 1


def test_one_view_and_certainty() -> None:
    said = summarise(np.array([[[200.0, 0, -200], [0, 0, 0]]], np.float32), np.array([0, 2]))
    assert said.entropy[0] == pytest.approx([0, np.log(3)], abs=1e-6)
    assert said.first.tolist() == [[0, 0]]
    assert said.agreement.tolist() == [1, 1]
    assert said.divergence == pytest.approx([0, 0])


def test_calibration_is_torchmetrics(logits: np.ndarray, labels: np.ndarray) -> None:
    said = summarise(logits, labels)
    found = reliability(said.confidence, said.first == labels)
    theirs = multiclass_calibration_error(
        torch.from_numpy(_probabilities(logits)).reshape(-1, _CLASSES),
        torch.from_numpy(np.tile(labels, _VIEWS)),
        _CLASSES,
        n_bins=15,
        norm="l1",
    )
    assert found.error == pytest.approx(float(theirs), abs=1e-5)
    assert found.counts.sum() == _VIEWS * _ROWS
    for number, (low, high) in enumerate(zip(found.edges[:-1], found.edges[1:], strict=True)):
        inside = (said.confidence > low) & (said.confidence <= high)
        assert found.counts[number] == inside.sum()
        if inside.any():
            assert found.confidence[number] == pytest.approx(said.confidence[inside].mean(), abs=1e-6)
            assert found.accuracy[number] == pytest.approx((said.first == labels)[inside].mean())
        else:
            assert np.isnan(found.confidence[number])


def test_edges_of_calibration() -> None:
    found = reliability(np.array([0.0, 1.0], np.float32), np.array([True, False]))
    assert found.counts[[0, -1]].tolist() == [1, 1]
    assert found.error == 1
    assert shares(np.array([-1.0, 0.1, 2.0]), np.array([0, 0.5, 1]), 4).tolist() == [0.5, 0.25]


def test_confusion(logits: np.ndarray, labels: np.ndarray) -> None:
    first = logits.argmax(-1)
    found = confusion(first, labels, _CLASSES)
    expected = np.zeros((_CLASSES, _CLASSES), int)
    for of_view in first:
        for label, said in zip(labels, of_view, strict=True):
            expected[label, said] += label != said
    assert found.counts.tolist() == sorted(expected[expected > 0].tolist(), reverse=True)
    for label, said, count, share in zip(found.labels, found.said, found.counts, found.shares, strict=True):
        assert count == expected[label, said]
        assert share == pytest.approx(count / (_VIEWS * (labels == label).sum()))
    assert not len(confusion(np.tile(labels, (2, 1)), labels, _CLASSES).counts)


def test_by_class(logits: np.ndarray, labels: np.ndarray) -> None:
    said = summarise(logits, labels)
    found = by_class(said.first, said.confidence, said.own, labels, _CLASSES)
    for class_id in range(_CLASSES):
        rows = labels == class_id
        assert found.rows[class_id] == rows.sum()
        if rows.any():
            assert found.accuracy[class_id] == pytest.approx((said.first[:, rows] == class_id).mean())
            assert found.confidence[class_id] == pytest.approx(said.confidence[:, rows].mean(), abs=1e-6)
            assert found.own[class_id] == pytest.approx(said.own[:, rows].mean(), abs=1e-6)
    assert np.isnan(found.accuracy[_CLASSES - 1])


@pytest.mark.usefixtures("blocks")
def test_mean_predictions(logits: np.ndarray, labels: np.ndarray) -> None:
    p, wanted = _probabilities(logits, 4.0), np.array([5, 6, 0])
    found = mean_predictions(logits, np.broadcast_to(labels, (_VIEWS, _ROWS)), wanted, 4.0)
    for line, class_id in zip(found, wanted, strict=True):
        rows = labels == class_id
        if rows.any():
            assert line == pytest.approx(p[:, rows].mean((0, 1)), abs=1e-6)
        else:
            assert np.isnan(line).all()
    by_said = mean_predictions(logits, logits.argmax(-1), np.arange(_CLASSES), 1.0)
    said = logits.argmax(-1)
    assert by_said[2] == pytest.approx(_probabilities(logits)[said == 2].mean(0), abs=1e-6)


def test_without_top_and_differing() -> None:
    predictions = np.array(
        [[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [np.nan] * 3, [0.05, 0.9, 0.05], [0.1, 0.8, 0.1]], np.float32
    )
    found = without_top(predictions[:2])
    assert found == pytest.approx(np.array([[0, 0.75, 0.25], [0.5, 0.5, 0]]))
    assert predictions[0, 0] == np.float32(0.6)
    assert differing(predictions, 2).tolist() == [0, 4]  # the most concentrated rest, and the last of the even ones
    assert differing(predictions, 9).tolist() == [0, 1, 3, 4]


def _logits(rows: int = 8, classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return student, teacher


@pytest.mark.parametrize(("k", "temperature"), [(1, 1.0), (5, 4.0)])
def test_levels_are_the_losses_gradients(k: int, temperature: float) -> None:
    """Outside the top classes, against automatic derivatives of the losses with one weight at a time."""
    student, teacher = _logits()
    top = top_classes(teacher, k)
    student.requires_grad_()
    found = level_gradients(student, teacher, top, temperature)
    losses = {
        "top_level": gdkd(student, teacher, k=k, w0=1, w1=0, w2=0, temperature=temperature),
        "other": gdkd(student, teacher, k=k, w0=0, w1=0, w2=1, temperature=temperature),
        "kd": kd(student, teacher, temperature=temperature),
    }
    for name, loss in losses.items():
        (expected,) = torch.autograd.grad(loss * len(student), student)
        torch.testing.assert_close(getattr(found, name).double(), expected.scatter(-1, top, 0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.kd, found.top_level + found.other / found.factor[:, None], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("top_mass", [0.5, 0.9, 0.999])
def test_the_rest_is_taught_as_much_stronger_as_theory_says(top_mass: float) -> None:
    """Of a student that differs only inside the rest, GDKD's gradient there is KD's times 1 / (1 - p_top)."""
    temperature, k, rest = 4.0, 3, 7
    generator = torch.Generator().manual_seed(0)
    inside = torch.randn(2, rest, generator=generator, dtype=torch.float64).log_softmax(-1)
    head = torch.linspace(2, 1, k, dtype=torch.float64).log_softmax(-1) + torch.tensor(top_mass).double().log()
    tail = inside + torch.tensor(1 - top_mass).double().log()
    # The largest logits are the top group: its classes are given, as the cache gives them.
    student, teacher = (temperature * torch.cat([head, own])[None] for own in tail)
    top = torch.arange(k)[None]
    student.requires_grad_()
    (of_gdkd,) = torch.autograd.grad(gdkd(student, teacher, k=k, w2=1, temperature=temperature, top=top), student)
    (of_kd,) = torch.autograd.grad(kd(student, teacher, temperature=temperature), student)
    ratio = of_gdkd[0, k:] / of_kd[0, k:]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 1 / (1 - top_mass)), rtol=1e-5, atol=0)
    found = level_gradients(student, teacher, top, temperature)
    torch.testing.assert_close(found.factor, torch.tensor([1 / (1 - top_mass)], dtype=torch.float32), rtol=1e-4, atol=0)
    ratio = (found.other / found.kd)[0, k:]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 1 / (1 - top_mass)), rtol=1e-3, atol=0)
    assert found.top_level.abs().max() < 1e-5


def test_a_teacher_without_a_rest_gives_finite_numbers() -> None:
    found = level_gradients(torch.zeros(1, 3), torch.tensor([[900.0, 0, 0]]), torch.tensor([[0]]), 1.0)
    assert all(part.isfinite().all() for part in found)


def test_pulls_at_uniform() -> None:
    _, teacher = _logits(rows=6)
    found = pulls_at_uniform(teacher.float().numpy(), 5, 4.0)
    *levels, factor = level_gradients(torch.zeros(6, 10), teacher.float(), top_classes(teacher, 5), 4.0)
    for values, level in zip(found.magnitudes.values(), levels, strict=True):
        assert sorted(values) == pytest.approx(sorted(level[level != 0].abs().tolist()))
    assert list(found.magnitudes) == ["top_level", "other", "kd"]
    assert found.factor == pytest.approx(float(factor.median()))
