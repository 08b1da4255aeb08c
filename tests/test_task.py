"""What a batch's loss is over the epochs, against the formula written out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import gdkd_cache as gc
from gdkd_cache.cache.dataset import TeacherBatch
from gdkd_cache.errors import UsageError
from gdkd_cache.losses.base import Loss
from gdkd_cache.training.options import TrainOptions
from gdkd_cache.training.task import Task

_GDKD = gc.loss("gdkd:k=3,temperature=4")


def _task(**fields: Any) -> Task:
    return Task.of(TrainOptions(**({"student": "cnn-s", "epochs": 9, "out": Path("out"), "loss": _GDKD} | fields)))


def _batch(num_top: int = 3) -> tuple[torch.Tensor, torch.Tensor, TeacherBatch]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 32, 10, generator=generator)
    labels = torch.randint(10, (32,), generator=generator)
    said = TeacherBatch(teacher, teacher.topk(num_top).indices, torch.arange(32), 0)
    return student.requires_grad_(), labels, said


def _parts(loss: Loss, student: torch.Tensor, labels: torch.Tensor, said: TeacherBatch) -> tuple[float, float]:
    student = student.detach()
    return float(F.cross_entropy(student, labels)), float(loss(student, said.logits, labels, said.top))


def test_label_smoothing() -> None:
    """It is torch's; so is that of mixed labels."""
    student, labels, said = _batch()
    mixed = torch.softmax(torch.randn(32, 10), -1)
    for targets in (labels, mixed):
        smoothed, plain = (
            _task(loss="ce", label_smoothing=part).terms(student, targets, None, 0) for part in (0.1, 0.0)
        )
        assert torch.equal(smoothed["loss"], F.cross_entropy(student, targets, label_smoothing=0.1))
        assert torch.equal(plain["loss"], F.cross_entropy(student, targets))
        assert smoothed["loss"] != plain["loss"]
    terms = _task(label_smoothing=0.1).terms(student, labels, said, 0)
    assert torch.equal(terms["ce"], F.cross_entropy(student, labels, label_smoothing=0.1))


def test_the_distillation_begins_late() -> None:
    """Cross-entropy alone, with weight 1, then a ramp whose epochs are counted from there."""
    student, labels, said = _batch()
    ce, distillation = _parts(_GDKD, student, labels, said)
    task = _task(skip_epochs=2, warmup=4, ce_weight=0.5, distillation_weight=3.0)
    for epoch, ramp in enumerate((None, None, 0.25, 0.5, 0.75, 1.0, 1.0)):
        terms = task.terms(student, labels, said, epoch)
        assert list(terms) == ["loss", "ce", "distillation", "agreement"]
        assert float(terms["loss"].detach()) == pytest.approx(
            ce if ramp is None else 0.5 * ce + 3 * ramp * distillation
        )
        assert float(terms["distillation"].detach()) == pytest.approx(distillation)
    late, plain = (torch.autograd.grad(one.terms(student, labels, said, 0)["loss"], student)[0] for one in
                   (task, _task(loss="ce")))  # fmt: skip
    assert torch.equal(late, plain)


def test_weights_over_the_epochs() -> None:
    """In place of the constant weight; the ramp is as before."""
    student, labels, said = _batch()
    ce, distillation = _parts(_GDKD, student, labels, said)
    task = _task(distillation_weights="2:1,4:3", warmup=2, distillation_weight=100.0)
    for epoch, weight in enumerate((0.5, 1.0, 2.0, 3.0, 3.0)):
        assert float(task.terms(student, labels, said, epoch)["loss"].detach()) == pytest.approx(
            ce + weight * distillation
        )


def test_temperatures_over_the_epochs() -> None:
    student, labels, said = _batch()
    task = _task(temperatures="1:8,3:2")
    found = [float(task.terms(student, labels, said, epoch)["distillation"].detach()) for epoch in range(4)]
    for epoch, temperature in enumerate((8.0, 5.0, 2.0, 2.0)):
        assert found[epoch] == pytest.approx(_parts(replace(_GDKD, temperature=temperature), student, labels, said)[1])
    assert len(set(found)) == 3


@pytest.mark.parametrize(
    "fields",
    [
        {"skip_epochs": 1},
        {"temperatures": "1:4"},
        {"distillation_weights": "1:1"},
        {"agreeing_weight": 0.0},
        {"disagreeing_weight": 2.0},
    ],
)
def test_settings_of_a_distillation_that_is_not_there(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(fields))} is .*; it goes with a distillation loss"):
        _task(loss="ce", **fields)


@pytest.mark.parametrize("num_top", [3, 0])
def test_agreement_is_told_and_no_part_of_the_loss(num_top: int) -> None:
    """The share of rows with the teacher's top class, whether the teacher brings it or its logits alone."""
    student, labels, said = _batch(num_top)
    terms = _task(loss="kd").terms(student, labels, said, 0)
    assert float(terms["agreement"]) == pytest.approx(
        sum(int(one.argmax() == other.argmax()) for one, other in zip(student, said.logits, strict=True)) / 32
    )
    assert not terms["agreement"].requires_grad
    same = _task(loss="kd").terms(said.logits, labels, said, 0)
    assert float(same["agreement"]) == 1.0
    assert "agreement" not in _task(loss="ce").terms(student, labels, None, 0)


@pytest.mark.parametrize("num_top", [3, 0])
def test_rows_weigh_by_agreement(num_top: int) -> None:
    """Each row's own loss, times the weight of its kind; where both weigh 1, nothing changes to the bit."""
    student, labels, said = _batch(num_top)
    loss = gc.loss("kd:temperature=2")
    task = _task(loss=loss, agreeing_weight=0.25, disagreeing_weight=3.0)
    slow, kinds = [], set()
    for i in range(32):
        own = loss(student[i : i + 1], said.logits[i : i + 1], labels[i : i + 1], said.top[i : i + 1])
        kinds.add(agrees := int(student[i].argmax()) == int(said.logits[i].argmax()))
        slow.append((0.25 if agrees else 3.0) * own)
    assert kinds == {True, False}
    wanted = torch.stack(slow).mean()
    found = task.terms(student, labels, said, 0)["distillation"]
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(one, student)[0] for one in (found, wanted)))
    even = _task(loss=loss).terms(student, labels, said, 0)["distillation"]
    assert torch.equal(even, loss(student, said.logits, labels, said.top))


def test_rows_of_no_weight_give_no_gradient() -> None:
    student, labels, said = _batch()
    task = _task(agreeing_weight=0.0, ce_weight=0.0)
    agree = student.argmax(-1) == said.top[:, 0]
    gradient = torch.autograd.grad(task.terms(student, labels, said, 0)["loss"], student)[0]
    assert (gradient.abs().sum(-1) > 0).tolist() == (~agree).tolist()
    task.terms(said.logits.clone().requires_grad_(), labels, said, 0)["loss"].backward()  # where all agree
