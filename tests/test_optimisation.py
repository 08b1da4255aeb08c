"""Optimizers and schedules by name: their arguments do what they say, and a schedule goes on to the bit."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small import linear_student
from torch import Tensor, nn

from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import CacheError, UsageError
from gdkd_cache.models.build import build_model
from gdkd_cache.training.optimization.optimizers import make_optimizer, make_scaler, parse_optimizer
from gdkd_cache.training.optimization.schedules import load_schedule_state, make_schedule, schedule_state
from gdkd_cache.training.options import TrainOptions
from gdkd_cache.training.train import train


def _options(**fields: Any) -> TrainOptions:
    return TrainOptions(**({"student": "cnn-s", "epochs": 6, "out": Path("out"), "lr": 0.01} | fields))


def _stepped(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> Tensor:
    """All weights of a network after some steps on the same images."""
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def _trained(make: Callable[[nn.Module], torch.optim.Optimizer]) -> Tensor:
    torch.manual_seed(0)
    model = build_model("cnn-s", 10)
    return _stepped(model, make(model))


def _by(**fields: Any) -> Tensor:
    return _trained(lambda model: make_optimizer(_options(**fields), model))


@pytest.mark.parametrize(
    ("spec", "make"),
    [
        ("sgd", lambda given: torch.optim.SGD(given, lr=0.01, momentum=0.9, weight_decay=5e-4)),
        ("SGD:momentum=0.5,nesterov=true",
         lambda given: torch.optim.SGD(given, lr=0.01, momentum=0.5, nesterov=True, weight_decay=5e-4)),
        ("adamw", lambda given: torch.optim.AdamW(given, lr=0.01, weight_decay=5e-4)),
        ("AdamW:betas=0.8/0.95,eps=1e-4",
         lambda given: torch.optim.AdamW(given, lr=0.01, betas=(0.8, 0.95), eps=1e-4, weight_decay=5e-4)),
        ("rmsprop:alpha=0.9", lambda given: torch.optim.RMSprop(given, lr=0.01, alpha=0.9, weight_decay=5e-4)),
    ],
)  # fmt: skip
def test_optimizers_of_torch(spec: str, make: Callable[[Any], torch.optim.Optimizer]) -> None:
    """To the bit what torch makes; other arguments make other weights."""
    found = _by(optimizer=spec)
    assert torch.equal(found, _trained(lambda model: make(model.parameters())))
    assert not torch.equal(found, _by(optimizer=spec, weight_decay=0.1))
    assert not torch.equal(found, _by(optimizer="adagrad"))


def test_optimizers_of_timm() -> None:
    from timm.optim._optim_factory import create_optimizer_v2

    def made(model: nn.Module) -> torch.optim.Optimizer:
        given: Any = model.parameters()
        return create_optimizer_v2(given, opt="lamb", lr=0.01, weight_decay=5e-4, betas=(0.8, 0.99))

    assert torch.equal(_by(optimizer="timm:lamb:betas=0.8/0.99"), _trained(made))
    ahead = make_optimizer(_options(optimizer="timm:Lookahead_Adam"), linear_student(10))
    assert type(ahead).__name__ == "Lookahead"
    with pytest.raises(UsageError, match="second derivatives"):
        _by(optimizer="timm:adahessian")
    with pytest.raises(UsageError, match="did you mean lamb"):
        _by(optimizer="timm:lambb")
    with pytest.raises(UsageError, match="cannot read 'beta=1'; allowed: "):
        _by(optimizer="timm:lion:beta=1")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("lbfgs", "takes several passes over a batch"),
        ("SparseAdam", "wants sparse gradients"),
        ("adamv", "optimizer is adamv; did you mean adam"),
        ("", "it must be one of adadelta, adafactor"),
        ("optimizer", "it must be one of|did you mean"),
        ("os:system", "optimizer is 'os:system'; it must be one of|did you mean"),
        ("lr_scheduler", "optimizer is lr_scheduler"),
        ("sgd:speed=1", "cannot read 'speed=1'; allowed: momentum, dampening, nesterov"),
        ("sgd:params=1", "cannot read 'params=1'"),
        ("sgd:momentum", "cannot read momentum"),
        ("sgd:lr=1", "lr is given with --lr"),
        ("sgd:weight_decay=1", "weight_decay is given with --weight-decay"),
        ("sgd:momentum=high", "momentum is high; it must be a number"),
        ("sgd:momentum=nan", "momentum is nan; it must be a number"),
        ("sgd:momentum=1e999", "momentum is '1e999'; it must be a number"),
        ("sgd:momentum=-1", "Invalid momentum value: -1"),
        ("sgd:momentum=0.9/0.8", "momentum is '0.9/0.8'; it must be a number"),
        ("sgd:nesterov=true,momentum=0", "Nesterov momentum requires a momentum"),
        ("adamw:betas=0.9", "betas is '0.9'; it must be 2 numbers, as in 0.9/0.999"),
        ("adamw:betas=0.9/0.9/0.9", "it must be 2 numbers"),
        ("adamw:eps=__import__('os')", "it must be a number, true, false"),
        ("sgd:nesterov=3", "nesterov is '3'; it must be true or false"),
        ("adamw:betas=2/2", "Invalid beta parameter"),
        ("rprop", "rprop has no weight decay; add --weight-decay 0"),
        ("muon", "optimizer muon: "),  # takes matrices alone
    ],
)
def test_optimizers_that_cannot_be(spec: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        make_optimizer(_options(optimizer=spec), build_model("cnn-s", 10))
    assert "\n" not in str(caught.value)


def test_norms_and_biases_do_not_decay() -> None:
    model = build_model("cnn-s", 10)
    optimizer = make_optimizer(_options(no_norm_decay=True, optimizer="adamw", weight_decay=0.1), model)
    decays = {id(one): group["weight_decay"] for group in optimizer.param_groups for one in group["params"]}
    assert [decays[id(one)] for one in model.parameters()] == [
        0.1 if one.ndim > 1 else 0.0 for one in model.parameters()
    ]
    assert set(decays.values()) == {0.0, 0.1}
    assert not torch.equal(_by(weight_decay=0.1), _by(weight_decay=0.1, no_norm_decay=True))
    assert torch.equal(_by(weight_decay=0.0), _by(weight_decay=0.0, no_norm_decay=True))


def test_the_scaler_is_float16s() -> None:
    cpu = torch.device("cpu")
    assert make_scaler(_options(precision="float16"), cpu).is_enabled()
    assert not make_scaler(_options(precision="bfloat16"), cpu).is_enabled()


def _made(options: TrainOptions, steps: int) -> tuple[torch.optim.Optimizer, Any]:
    optimizer = make_optimizer(options, linear_student(10))
    return optimizer, make_schedule(options, optimizer, steps)


def _rates(options: TrainOptions, steps: int) -> list[float]:
    """The learning rate of each call's turn: an epoch's, or a step's."""
    optimizer, schedule = _made(options, steps)
    calls = options.epochs * (steps if options.schedule_by == "step" else 1)
    rates = []
    for _ in range(calls):
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step()
    return rates


def _one_cycle(done: float) -> float:
    """Of (0, 1): the rise and the fall of torch's one-cycle, in parts of the largest rate, of 30 calls."""
    top, low, end = 1.0, 1 / 25, 1 / 25 / 1e4
    call, rise = done * 30, 0.3 * 30 - 1
    first, last, part = (low, top, call / rise) if call <= rise else (top, end, (call - rise) / (29 - rise))
    return last + (first - last) / 2 * (1 + math.cos(math.pi * part))


_FORMULAS: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "cosine:least=0.002": lambda done: 0.2 + 0.8 * (1 + math.cos(math.pi * done)) / 2,
    "linear": lambda done: 1 - done,
    "linear:least=0.005": lambda done: 1 - done / 2,
    "polynomial:power=0.9": lambda done: (1 - done) ** 0.9,
    "polynomial:power=0.9,least=0.002": lambda done: 0.2 + 0.8 * (1 - done) ** 0.9,
    "step:every=2,gamma=0.5": lambda done: 0.5 ** (int(done * 6 + 1e-9) // 2),
    "multistep:at=1/4": lambda done: 0.1 ** sum(done * 6 + 1e-9 >= epoch for epoch in (1, 4)),
}


@pytest.mark.parametrize("spec", _FORMULAS)
@pytest.mark.parametrize("by", ["epoch", "step"])
def test_schedules_follow_their_formulas(spec: str, by: str) -> None:
    calls = 6 if by == "epoch" else 30
    expected = [0.01 * _FORMULAS[spec](call / calls) for call in range(calls)]
    assert _rates(_options(schedule=spec, schedule_by=by), 5) == pytest.approx(expected, rel=1e-9)
    if "least" not in spec:
        warmup = 2 * calls / 6
        warmed = [rate * min((call + 1) / (warmup + 1), 1) for call, rate in enumerate(expected)]
        found = _rates(_options(schedule=spec, schedule_by=by, lr_warmup=2), 5)
        assert found == pytest.approx(warmed, rel=1e-9)


def test_a_least_with_a_warm_up() -> None:
    """It is reached, and the way there is off by no more than that least."""
    fields: dict[str, Any] = {"epochs": 300, "lr": 1e-3, "lr_warmup": 20, "schedule": "cosine:least=1e-5"}
    found = _rates(_options(**fields), 1)
    for epoch, rate in enumerate(found):
        cosine = 1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * epoch / 300)) / 2
        assert abs(rate - cosine * min((epoch + 1) / 21, 1)) < 1e-5
    assert found[-1] == pytest.approx(1e-5, rel=0.02)


def test_one_cycle() -> None:
    """The rate as published; momentum runs against it, for both kinds of it."""
    fields: dict[str, Any] = {"schedule": "one-cycle", "schedule_by": "step"}
    expected = [0.01 * _one_cycle(call / 30) for call in range(30)]
    assert _rates(_options(**fields), 5) == pytest.approx(expected, rel=1e-9)
    for name, key in (("sgd", "momentum"), ("adamw", "betas")):
        optimizer, schedule = _made(_options(optimizer=name, **fields), 5)
        seen = []
        for _ in range(30):
            seen.append(optimizer.param_groups[0][key])
            schedule.step()
        seen = [one[0] if isinstance(one, tuple) else one for one in seen]
        assert (seen[0], min(seen)) == pytest.approx((0.95, 0.85))
        assert seen.index(min(seen)) == 8
    optimizer, _ = _made(_options(optimizer="adagrad", schedule="one-cycle:momentum=false,start=10"), 5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"schedule": "exponential"}, "schedule is 'exponential'; it must be one of cosine, step, multistep:at="),
        ({"schedule": "cosine:lest=1"}, "schedule cosine: cannot read 'lest=1'; allowed: least=0.0"),
        ({"schedule": "cosine:least=-1"}, "schedule cosine: least is -1.0; it must be float in 0"),
        ({"schedule": "linear:least=1"}, "least is 1, above lr, which is 0.01"),
        ({"schedule": "step:every=0"}, "schedule step: every is 0"),
        ({"schedule": "multistep"}, "at is missing; it must be rising epochs"),
        ({"schedule": "multistep:at=3/2"}, "at is 3/2; it must be rising epochs"),
        ({"schedule": "one-cycle", "lr_warmup": 1}, "leave lr_warmup out"),
        ({"schedule": "one-cycle", "epochs": 3}, "rise is 0.3 of 3 calls of the schedule"),
        ({"schedule": "one-cycle", "optimizer": "adagrad"}, "write one-cycle:momentum=false"),
        ({"schedule": "os:system"}, "is no class that derives from"),
    ],
)
def test_schedules_that_cannot_be(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        _made(_options(**fields), 5)
    assert "\n" not in str(caught.value)


_WARMED = [*_FORMULAS, "one-cycle", "one-cycle:shape=linear"]


@pytest.mark.parametrize("spec", _WARMED)
@pytest.mark.parametrize("by", ["epoch", "step"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_schedule_goes_on(spec: str, by: str, optimizer: str) -> None:
    """Stopped after any call, made afresh and loaded through JSON: each later rate and momentum is equal to the bit."""
    warmup = 0 if spec.startswith("one-cycle") else 2
    options = _options(schedule=spec, schedule_by=by, lr_warmup=warmup, optimizer=optimizer, no_norm_decay=True)
    calls = options.epochs * (5 if by == "step" else 1)
    whole, schedule = _made(options, 5)
    wanted, states = [], []
    for _ in range(calls):
        states.append((json.dumps(whole.state_dict()), json.dumps(schedule_state(schedule))))
        wanted.append([(group["lr"], group.get("momentum"), group.get("betas")) for group in whole.param_groups])
        schedule.step()
    for stopped, (groups, state) in enumerate(states):
        part, again = _made(options, 5)
        part.load_state_dict(json.loads(groups))
        load_schedule_state(again, json.loads(state))
        for call in range(stopped, calls):
            found = [(group["lr"], group.get("momentum"), group.get("betas")) for group in part.param_groups]
            tuples = [(lr, momentum, betas and tuple(betas)) for lr, momentum, betas in found]
            assert tuples == wanted[call], (stopped, call)
            again.step()


_OWN = """
from dataclasses import dataclass
from torch.optim.lr_scheduler import ExponentialLR
from gdkd_cache.fields import option
from gdkd_cache.training.optimization.schedules import Schedule

@dataclass(frozen=True, kw_only=True)
class Exponential(Schedule):
    gamma: float = option(0.9, "what it is multiplied with", above=0, most=1)

    def scheduler(self, optimizer, epochs, calls):
        return ExponentialLR(optimizer, self.gamma ** (1 / calls))
"""


def test_a_schedule_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_schedule.py").write_text(_OWN)
    monkeypatch.syspath_prepend(tmp_path)
    found = _rates(_options(schedule="own_schedule:Exponential:gamma=0.5", schedule_by="step"), 5)
    assert found == pytest.approx([0.01 * 0.5 ** (call / 5) for call in range(30)])
    with pytest.raises(UsageError, match=r"gamma is 2\.0"):
        _rates(_options(schedule="own_schedule:Exponential:gamma=2"), 5)


def test_a_schedule_of_another_state() -> None:
    _, schedule = _made(_options(), 5)
    for state in ({}, {"calls": -1}, {"calls": True}):
        with pytest.raises(CacheError, match="the state of a schedule is"):
            load_schedule_state(schedule, state)


def test_what_a_training_does_with_them(tmp_path: Path, digits: ArraySource, digits_test: ArraySource) -> None:
    """The rates that metrics tell are the schedule's, and other optimizers give other losses."""
    losses = []
    for name in ("sgd", "sgd:momentum=0", "nadam"):
        options = _options(out=tmp_path / name, epochs=2, schedule="polynomial:power=2", optimizer=name, seed=1)
        train(options, digits, digits_test)
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert [line["lr"] for line in lines] == pytest.approx([0.01, 0.0025])
        losses.append(lines[-1]["loss"])
    assert len(set(losses)) == 3


def test_everything_wrong_is_refused_before_anything_is_opened() -> None:
    for fields in ({"optimizer": "x"}, {"schedule": "x"}, {"loss": "x"}, {"loss": "ce", "temperatures": "1:4"}):
        with pytest.raises(UsageError):
            _options(**fields).check()
    assert parse_optimizer(_options(optimizer="adamw")) is not None
