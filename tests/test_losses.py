"""The losses against reference values in float64, and at the edges where common implementations break."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_losses import slow_partition_loss
from torch import Tensor

import gdkd_cache as gc
from gdkd_cache import losses
from gdkd_cache.errors import CacheError, UsageError
from gdkd_cache.losses import partition
from gdkd_cache.losses.base import Loss, loss_from_json
from gdkd_cache.losses.partition import KL_KINDS
from gdkd_cache.losses.registry import LOSSES

_GOLDEN = Path(__file__).parent / "golden"
_CASES = json.loads((_GOLDEN / "losses.json").read_text())
_STANDARDIZED: dict[str, str] = {"lskd": "kd", "ls_gdkd": "gdkd"}


def _loss(case: dict[str, Any]) -> Loss:
    parameters = dict(case["params"])
    for short, name in (("T", "temperature"), ("kind", "kl")):
        if short in parameters:
            parameters[name] = parameters.pop(short)
    name: str = case["loss"]
    return LOSSES.load(_STANDARDIZED.get(name, name))(standardize=name in _STANDARDIZED, **parameters)


@pytest.mark.parametrize("case", _CASES, ids=lambda case: f"{case['id']}-{case['loss']}")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=["f64", "f32"])
def test_golden(case: dict[str, Any], dtype: torch.dtype, tolerance: float) -> None:
    with np.load(_GOLDEN / "losses.npz") as golden:
        value = {name: torch.from_numpy(golden[f"{case['id']}/{name}"]) for name in
                 ("student", "teacher", "target", "loss", "grad")}  # fmt: skip
    student = value["student"].to(dtype).requires_grad_()
    loss = _loss(case)(student, value["teacher"].to(dtype), value["target"])
    loss.backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert loss.item() == pytest.approx(value["loss"].item(), rel=tolerance)
    error = (student.grad.double() - value["grad"]).norm() / value["grad"].norm()
    assert error < tolerance


def _slow_gdkd(student: Tensor, teacher: Tensor, k: int, weights: tuple[float, float, float], t: float) -> float:
    """One sample, from the equations, in Python floats."""
    order = sorted(range(len(teacher)), key=lambda c: (-teacher[c].item(), c))
    groups = [order[:k], order[k:]]

    def soft(z: Tensor, classes: list[int]) -> list[float]:
        powers = [float(np.exp(z[c].item() / t)) for c in classes]
        return [power / sum(powers) for power in powers]

    def divergence(p: list[float], q: list[float]) -> float:
        return sum(a * float(np.log(a / b)) for a, b in zip(p, q, strict=True))

    everything = list(range(len(teacher)))
    p, q = soft(teacher, everything), soft(student, everything)
    masses = [[sum(x[c] for c in group) for group in groups] for x in (p, q)]
    loss = weights[0] * divergence(*masses)
    for weight, group in zip(weights[1:], groups, strict=True):
        loss += weight * divergence(soft(teacher, group), soft(student, group))
    return loss * t * t


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(0, 2**31), st.data())
def test_gdkd_is_its_equation(num_classes: int, seed: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, num_classes - 1))
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, num_classes, generator=generator, dtype=torch.float64).mul(3)
    teacher = teacher.round()  # ties
    expected = _slow_gdkd(student, teacher, k, (1.0, 2.0, 8.0), 2.0)
    loss = losses.gdkd(student, teacher, k=k, w0=1.0, w1=2.0, w2=8.0, temperature=2.0)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(1, 4), max_size=4), st.integers(1, 6), st.sampled_from(KL_KINDS),
       st.sampled_from([1.0, 30.0]), st.sampled_from([1, 7, 2**17]), st.data())  # fmt: skip
def test_the_closed_gradient(
    seed: int, sizes: list[int], rest: int, kl: str, scale: float, at_once: int, data: st.DataObject
) -> None:
    """Any number of groups, some of them without weight, many rows or few at a time: what autograd makes of the sum."""
    generator = torch.Generator().manual_seed(seed)
    num_classes = max(sum(sizes) + rest, 2)
    student, teacher = torch.randn(2, 2, 5, num_classes, generator=generator, dtype=torch.float64).mul(scale)
    order = torch.stack([torch.randperm(num_classes, generator=generator) for _ in range(10)]).view(2, 5, -1)
    members = order[..., : sum(sizes)]
    group = torch.full_like(order, len(sizes)).scatter(
        -1,
        members,
        torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.int64)).expand_as(members),
    )
    weights = data.draw(st.lists(st.sampled_from([0.0, 0.5, 8.0]), min_size=len(sizes) + 1, max_size=len(sizes) + 1))
    settings: dict[str, Any] = {"top_weight": 2.0, "group_weights": weights, "temperature": 3.0, "kl": kl}
    found, expected = student.clone().requires_grad_(), student.clone().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partition, "_ELEMENTS_OF_A_THREAD", at_once)
        loss = partition.partition_loss(found, teacher, partition.Partition(members, tuple(sizes)), **settings)
    slow = slow_partition_loss(expected, teacher, group, **settings)
    torch.testing.assert_close(loss, slow)
    torch.testing.assert_close(
        *(torch.autograd.grad(value * 7, logits)[0] for value, logits in ((loss, found), (slow, expected)))
    )


@pytest.mark.parametrize("name", ["kd", "dkd", "gdkd", "gdkd3"])
def test_there_is_no_second_derivative(name: str) -> None:
    student = torch.randn(4, 10, requires_grad=True)
    loss = gc.loss(name)(student, torch.randn(4, 10), torch.zeros(4, dtype=torch.int64))
    (gradient,) = torch.autograd.grad(loss, student, create_graph=True)
    with pytest.raises(UsageError, match="no second derivative"):
        torch.autograd.grad(gradient.sum(), student)


def test_equal_logits_rank_by_class_id() -> None:
    assert losses.top_classes(torch.tensor([[1.0, 3.0, 3.0, 0.0, 3.0]]), 4).tolist() == [[1, 2, 4, 0]]


def test_the_partition_can_be_given() -> None:
    student, teacher = torch.randn(4, 10), torch.randn(4, 10)
    top = losses.top_classes(teacher, 8)
    assert torch.equal(losses.gdkd(student, teacher, top=top), losses.gdkd(student, teacher))
    assert torch.equal(losses.gdkd3(student, teacher, top=top), losses.gdkd3(student, teacher))
    assert not torch.equal(losses.gdkd(student, teacher, top=top.flip(1)), losses.gdkd(student, teacher))


@pytest.mark.parametrize("name", [*LOSSES])
def test_any_leading_shape(name: str) -> None:
    student, teacher = torch.randn(2, 3, 4, 10), torch.randn(2, 3, 4, 10)
    labels = torch.randint(0, 10, (2, 3, 4))
    loss = gc.loss(name)
    flat = loss(student.flatten(0, 2), teacher.flatten(0, 2), labels.flatten())
    torch.testing.assert_close(loss(student, teacher, labels), flat)
    one = loss(student[0, 0, 0], teacher[0, 0, 0], labels[0, 0, 0])
    assert one.shape == ()


@pytest.mark.parametrize("name", [*LOSSES])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_finite_in_bfloat16_autocast(name: str, scale: float) -> None:
    features = torch.randn(8, 16)
    head = torch.nn.Linear(16, 100)
    labels = torch.randint(0, 100, (8,))
    with torch.autocast("cpu", torch.bfloat16):
        student = head(features) * scale
        assert student.dtype == torch.bfloat16
        loss = gc.loss(f"{name}:temperature=1")(student, torch.randn(8, 100) * scale, labels)
    assert loss.dtype == torch.float32
    loss.backward()
    assert head.weight.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(head.weight.grad).all()


def test_a_perfect_student_has_no_loss() -> None:
    teacher = torch.randn(8, 10, dtype=torch.float64)
    student = (teacher + 3.0).requires_grad_()  # logits are defined up to a constant per row
    for name in ("kd", "dkd", "gdkd", "gdkd3"):
        loss = gc.loss(name)(student, teacher, torch.zeros(8, dtype=torch.int64))
        (grad,) = torch.autograd.grad(loss, student)
        assert abs(loss.item()) < 1e-12
        assert grad.abs().max() < 1e-12


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda s, t: losses.gdkd(s, t, k=10), "k is 10; it must be at least 1 and below the number of classes, 10"),
        (lambda s, t: losses.gdkd(s, t, k=0), "k is 0"),
        (lambda s, t: losses.gdkd3(s, t, k=1), "gdkd3 needs k of at least 2"),
        (lambda s, t: losses.gdkd(s, t, temperature=0.0), "temperature is 0"),
        (lambda s, t: losses.kd(s, t, temperature=-1.0), "temperature is -1"),
        (lambda s, t: losses.gdkd(s, t, kl="sideways"), "kl is 'sideways'"),
        (lambda s, t: losses.gdkd(s, t[:, :9]), r"\[4, 10\].*\[4, 9\]"),
        (lambda s, t: losses.gdkd(s, t, top=torch.zeros(4, 3, dtype=torch.int64)), r"top is \[4, 3\].*k=5"),
        (lambda s, t: losses.gdkd(s, t, top=torch.zeros(3, 5, dtype=torch.int64)), r"top is \[3, 5\]"),
        (
            lambda s, t: losses.dkd(s, t, torch.zeros(3, dtype=torch.int64), alpha=1.0, beta=1.0, temperature=1.0),
            r"labels are \[3\]",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(call: Any, said: str) -> None:
    student, teacher = torch.randn(4, 10), torch.randn(4, 10)
    with pytest.raises(UsageError, match=said):
        call(student, teacher)


_SPECS = {
    "kd": "kd:temperature=2,standardize=1",
    "dkd": "dkd:alpha=0.5,beta=2",
    "gdkd": "gdkd:k=3,w0=0.5,w1=2,w2=6,kl=both,temperature=1",
    "gdkd3": "gdkd3:k=3,standardize=true",
    "dist": "dist:beta=2,gamma=0.5",
    "pld": "pld:temperature=2",
    "bdkd": "bdkd:favour=3,temperature=1",
    "sinkd": "sinkd:blur=0.2,iterations=10",
    "taid": "taid:share=0.4",
    "ofa": "ofa:gamma=1.5",
    "margin_mse": "margin_mse:standardize=1",
}


@pytest.mark.parametrize("name", [*LOSSES])
def test_specs_and_json(name: str) -> None:
    """What a spec says is what the loss holds; its JSON makes it again."""
    loss = gc.loss(_SPECS[name])
    for setting in _SPECS[name].partition(":")[2].split(","):
        field, _, value = setting.partition("=")
        found = getattr(loss, field)
        assert found == (value in ("1", "true") if isinstance(found, bool) else type(found)(value))
    assert loss_from_json(json.loads(json.dumps(loss.to_json()))) == loss
    assert str(loss).startswith(f"{name} temperature=")
    assert gc.loss(loss) is loss
    assert gc.loss(name) == LOSSES.load(name)()


@pytest.mark.parametrize("name", [*LOSSES])
def test_one_default(name: str) -> None:
    """The function's defaults, fixed for users, are the class's."""
    loss = gc.loss(name)
    for parameter in inspect.signature(getattr(losses, name)).parameters.values():
        if parameter.default is not parameter.empty and parameter.default is not None:
            assert parameter.default == getattr(loss, parameter.name)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("mse", f"loss is 'mse'; it must be one of {', '.join(LOSSES)}, package.module:name"),
        ("kd:temperature=0", "temperature is 0.0; it must be float in 0.001..1000000"),
        ("kd:temperature=inf", "temperature is inf; it must be float in 0.001..1000000 and finite"),
        ("kd:k=3", "loss kd: cannot read 'k=3'; allowed: temperature=4.0, standardize=False"),
        ("gdkd:k=0", "k is 0; it must be at least 1"),
        ("gdkd3:k=1", "k is 1; it must be at least 2"),
        ("gdkd:k=2.5", "loss gdkd: k='2.5' is not int"),
        ("gdkd:w2=-1", "w2 is -1.0; it must be float in 0..1000000"),
        ("gdkd:kl=x", "kl is 'x'; it must be one of forward, reverse, both"),
        ("nowhere.at_all:Loss", "'nowhere.at_all:Loss' cannot be imported: No module named 'nowhere'"),
        ("json:JSONDecoder", "loss 'json:JSONDecoder' is no class that derives from gdkd_cache.losses.base.Loss"),
    ],
)
def test_wrong_specs(spec: str, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        gc.loss(spec)


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ({"loss": "mse", "temperature": 1.0}, "loss 'mse' is not known to this version"),
        ({"temperature": 1.0}, "expected its name in loss"),
        ({"loss": "kd", "temperature": "1"}, "a declared loss.temperature is"),
        ({"loss": "kd", "temperature": -1.0}, "temperature is -1.0; it must be float in 0.001..1000000"),
        ({"loss": "kd", "k": 3}, "a declared loss.k is not known"),
        ("kd", "a declared loss is kd; expected an object"),
    ],
)
def test_wrong_json(stored: object, said: str) -> None:
    with pytest.raises(CacheError, match=re.escape(said)):
        loss_from_json(stored)
