"""The losses of other papers against slow references, written from their equations in float64."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gdkd_cache as gc
from gdkd_cache import losses
from gdkd_cache.codec.registry import CODECS
from gdkd_cache.errors import UsageError
from gdkd_cache.losses.registry import LOSSES

_GOLDEN = Path(__file__).parent / "golden"


def _soft(z: Tensor, temperature: float) -> Tensor:
    powers = (z / temperature).exp()
    return powers / powers.sum(-1, keepdim=True)


def _pearson(one: Tensor, other: Tensor) -> Tensor:
    a, b = one - one.mean(), other - other.mean()
    return (a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt()


def _dist(s: Tensor, t: Tensor, y: Tensor, *, beta: float, gamma: float, temperature: float) -> Tensor:
    q, p = _soft(s, temperature), _soft(t, temperature)
    inter = torch.stack([1 - _pearson(*pair) for pair in zip(q, p, strict=True)]).mean()
    intra = torch.stack([1 - _pearson(*pair) for pair in zip(q.T, p.T, strict=True)]).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def _pld(s: Tensor, t: Tensor, y: Tensor, *, temperature: float) -> Tensor:
    total, p = torch.zeros((), dtype=s.dtype), _soft(t, temperature)
    for i, label in enumerate(y.tolist()):
        rest = sorted((c for c in range(s.shape[1]) if c != label), key=lambda c, i=i: (-t[i, c].item(), c))
        order = [label, *rest]
        for k, chosen in enumerate(order):
            left = (s[i, order[k:]] / temperature).exp().sum().log()
            total = total + p[i, chosen] * (left - s[i, chosen] / temperature)
    return temperature**2 * total / len(s)


def _bdkd(s: Tensor, t: Tensor, y: Tensor, *, favour: float, temperature: float) -> Tensor:
    total = torch.zeros((), dtype=s.dtype)
    for q, p in zip(_soft(s, temperature), _soft(t, temperature), strict=True):
        surer = -(q * q.log()).sum() < -(p * p.log()).sum()
        forward, reverse = (p * (p / q).log()).sum(), (q * (q / p).log()).sum()
        total = total + forward * (favour if surer else 1) + reverse * (1 if surer else favour)
    return temperature**2 * total / len(s)


def _sinkd(s: Tensor, t: Tensor, y: Tensor, *, blur: float, iterations: int, temperature: float) -> Tensor:
    q, p = _soft(s, temperature), _soft(t, temperature)
    costs = torch.stack([torch.stack([(a - b).abs().sum() for b in p]) for a in q])
    plan = (-costs / blur).exp()
    for _ in range(iterations):
        plan = plan / plan.sum(1, keepdim=True)
        plan = plan / plan.sum(0, keepdim=True)
    return (plan * costs).sum() / len(s)


def _taid(s: Tensor, t: Tensor, y: Tensor, *, share: float, temperature: float) -> Tensor:
    r, q = _soft((1 - share) * s.detach() + share * t, temperature), _soft(s, temperature)
    return temperature**2 * (r * (r / q).log()).sum(-1).mean()


def _ofa(s: Tensor, t: Tensor, y: Tensor, *, gamma: float, temperature: float) -> Tensor:
    q, p = _soft(s, temperature), _soft(t, temperature)
    label = torch.nn.functional.one_hot(y, s.shape[1])
    return temperature**2 * -(((p + label) ** gamma - label) * q.log()).sum(-1).mean()


def _margin_mse(s: Tensor, t: Tensor, y: Tensor, *, temperature: float) -> Tensor:
    total = torch.zeros((), dtype=s.dtype)
    for i, label in enumerate(y.tolist()):
        others = [c for c in range(s.shape[1]) if c != label]
        apart = [(s[i, label] - s[i, c]) - (t[i, label] - t[i, c]) for c in others]
        total = total + torch.stack(apart).square().mean()
    return total / len(s)


_SLOW = {
    "dist": _dist, "pld": _pld, "bdkd": _bdkd, "sinkd": _sinkd, "taid": _taid, "ofa": _ofa, "margin_mse": _margin_mse,
}  # fmt: skip
_SPECS = [
    "dist", "dist:beta=2,gamma=0.5,temperature=4", "pld", "pld:temperature=3", "bdkd", "bdkd:favour=5,temperature=1",
    "sinkd", "sinkd:blur=0.02,iterations=7,temperature=1", "taid", "taid:share=0.3,temperature=2", "ofa",
    "ofa:gamma=1.5,temperature=2", "margin_mse",
]  # fmt: skip


def _drawn(rows: int, num_classes: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, rows, num_classes, generator=generator, dtype=torch.float64).mul(3)
    return student, teacher, torch.randint(0, num_classes, (rows,), generator=generator)


@pytest.fixture(scope="module")
def saturated() -> list[tuple[Tensor, Tensor, Tensor]]:
    """The inputs of the golden cases, float32, that are saturated: logits of hundreds."""
    cases = sorted({case["id"] for case in json.loads((_GOLDEN / "losses.json").read_text()) if case["scale"] > 10})
    with np.load(_GOLDEN / "losses.npz") as golden:
        parts = [
            [torch.from_numpy(golden[f"{case}/{name}"]) for name in ("student", "teacher", "target")] for case in cases
        ]
    return [(student.float(), teacher.float(), labels) for student, teacher, labels in parts]


@pytest.mark.parametrize("spec", _SPECS)
@pytest.mark.parametrize("shape", [(9, 7), (5, 2)])
def test_it_is_its_equation(spec: str, shape: tuple[int, int]) -> None:
    student, teacher, labels = _drawn(*shape)
    loss = gc.loss(spec)
    settings = {name: value for name, value in loss.to_json().items() if name not in ("loss", "standardize")}
    found, expected = student.clone().requires_grad_(), student.clone().requires_grad_()
    given = teacher.clone().requires_grad_()
    value = loss(found, given, labels)
    slow = _SLOW[loss.name](expected, teacher, labels, **settings)
    (ours,), (theirs,) = torch.autograd.grad(value, found, retain_graph=True), torch.autograd.grad(slow, expected)
    assert value.item() == pytest.approx(slow.item(), rel=1e-9, abs=1e-12)
    assert (ours - theirs).norm() <= 1e-9 * theirs.norm()
    assert torch.autograd.grad(value, given, allow_unused=True) == (None,), "the teacher is no one's to train"


@pytest.mark.parametrize("name", _SLOW)
@pytest.mark.parametrize("settings", ["", ":temperature=1", ":standardize=1"])
def test_finite_where_all_is_saturated(
    name: str, settings: str, saturated: list[tuple[Tensor, Tensor, Tensor]]
) -> None:
    for student, teacher, labels in saturated:
        logits = student.clone().requires_grad_()
        loss = gc.loss(f"{name}{settings}")(logits, teacher, labels)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", _SLOW)
def test_a_student_that_says_the_same_everywhere(name: str) -> None:
    """Where nothing varies, and in a batch of one row: finite, and no matter how many leading axes there are."""
    _, teacher, labels = _drawn(4, 6)
    for rows in (slice(0, 1), slice(None)):
        student = torch.zeros_like(teacher[rows], requires_grad=True)
        loss = gc.loss(name)(student, teacher[rows], labels[rows])
        assert torch.autograd.grad(loss, student)[0].isfinite().all()
    student = torch.randn(2, 2, 6, dtype=torch.float64)
    flat = gc.loss(name)(student.view(4, 6), teacher, labels)
    torch.testing.assert_close(gc.loss(name)(student, teacher.view(2, 2, 6), labels.view(2, 2)), flat)


def test_known_cases() -> None:
    student, teacher, labels = _drawn(6, 5)
    kd = losses.kd(student, teacher, temperature=2.0)
    torch.testing.assert_close(losses.taid(student, teacher, share=1.0, temperature=2.0), kd)
    assert losses.taid(student, teacher, share=0.0).item() == pytest.approx(0, abs=1e-12)
    assert losses.margin_mse(teacher + 3, teacher, labels).item() == pytest.approx(0, abs=1e-12)
    assert losses.dist(teacher, teacher).item() == pytest.approx(0, abs=1e-12)
    assert losses.sinkd(teacher, teacher, blur=1e-3).item() == pytest.approx(0, abs=1e-9)
    entropy = -(teacher.softmax(-1) * teacher.log_softmax(-1)).sum(-1).mean()
    assert losses.ofa(student, teacher, labels).item() == pytest.approx(
        (losses.kd(student, teacher, temperature=1.0) + entropy).item(), rel=1e-12
    )
    sure = torch.full((6, 5), -1e3, dtype=torch.float64).scatter(1, labels[:, None], 1e3)
    cross_entropy = torch.nn.functional.cross_entropy(student, labels)
    torch.testing.assert_close(losses.pld(student, sure, labels), cross_entropy)
    uniform = torch.zeros(1, 4, dtype=torch.float64)  # all orders are alike: log 4!
    assert losses.pld(uniform, uniform, torch.tensor([0])).item() == pytest.approx(math.log(24) / 4)


def test_the_exact_ranking_can_be_given() -> None:
    """Where decoded logits tie, or are out of order, the stored ranks say what the teacher's order was."""
    student, teacher, labels = _drawn(6, 8)
    top = losses.top_classes(teacher, 4)
    tied = teacher.scatter(1, top, teacher.amax(-1, keepdim=True).expand(-1, 4))
    p = tied.softmax(-1)
    found = losses.pld(student, tied, labels, top=top)
    order = teacher.argsort(dim=-1, descending=True)
    expected = []
    for i, label in enumerate(labels.tolist()):
        own = [label, *(c for c in order[i].tolist() if c != label)]
        expected.append(sum(p[i, c] * (student[i, own[k:]].logsumexp(0) - student[i, c]) for k, c in enumerate(own)))
    torch.testing.assert_close(found, torch.stack(expected).mean())  # pyright: ignore[reportArgumentType]
    assert not torch.allclose(found, losses.pld(student, tied, labels))


@pytest.mark.parametrize("name", _SLOW)
def test_wrong_shapes_are_named(name: str) -> None:
    student, teacher, labels = _drawn(4, 6)
    with pytest.raises(UsageError, match=r"\[4, 6\].*\[4, 5\]"):
        gc.loss(name)(student, teacher[:, :5], labels)
    if LOSSES.load(name).needs_labels:
        with pytest.raises(UsageError, match=r"labels are \[3\]"):
            gc.loss(name)(student, teacher, labels[:3])


@pytest.mark.parametrize("name", _SLOW)
def test_what_cannot_serve_it_says_so(name: str) -> None:
    """A sketch of the head refuses a loss of the whole tail by name; the others serve all."""
    loss: Any = gc.loss(name)
    sensitivity = loss.sensitivity(*_float(*_drawn(6, 20)), torch.zeros(6, 1, dtype=torch.int64))
    assert sensitivity.shape == (6, 20)
    assert (sensitivity >= 0).all()
    topk = CODECS.load("topk")(num_classes=20, num_top=4, temperatures=(loss.temperature,))  # pyright: ignore[reportCallIssue]
    refusal = topk.refusal(loss)
    assert (refusal is not None) == loss.needs_tail
    if refusal is not None:
        assert name in refusal


def _float(student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return teacher.float(), labels
