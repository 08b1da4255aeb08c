"""What a training tells of its gradients, against one look at a time; and what a state may say of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gdkd_cache import open_cache
from gdkd_cache.cache.batch import TeacherBatch
from gdkd_cache.data.source import ArraySource
from gdkd_cache.losses.base import parse_loss
from gdkd_cache.losses.levels import NAMES, level_gradients
from gdkd_cache.losses.partition import standardize, top_classes
from gdkd_cache.training import gradients
from gdkd_cache.training.records.runs import read_run
from gdkd_cache.training.state import State
from gdkd_cache.training.train import TrainOptions, train


def _batch(rows: int = 20, classes: int = 12, top: int = 8) -> tuple[torch.Tensor, TeacherBatch]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (2 * torch.randn(rows, classes, generator=generator) for _ in range(2))
    return student, TeacherBatch(teacher, top_classes(teacher, top), torch.arange(rows), 0)


@pytest.mark.parametrize(
    ("spec", "k", "top"),
    [("gdkd:k=3", 3, 8), ("gdkd3:k=4,temperature=2", 4, 8), ("kd", 5, 8), ("kd", 5, 0), ("dkd", 5, 2)],
)
@pytest.mark.parametrize("standardized", [False, True])
def test_a_look(spec: str, k: int, top: int, standardized: bool) -> None:
    """The top group is the loss's, or five classes; whatever the teacher's batch holds of them."""
    student, said = _batch(top=top)
    loss = parse_loss(f"{spec}{',' if ':' in spec else ':'}standardize={str(standardized).lower()}")
    one, factor, *values = gradients.look(student, said, loss).tolist()
    s, t = (standardize(logits) if standardized else logits for logits in (student, said.logits))
    classes = said.logits.argsort(-1, descending=True)[:, :k]
    *levels, factors = level_gradients(s, t, classes, loss.temperature)
    outside = torch.ones(20, 12, dtype=torch.bool).scatter(-1, classes, False)
    expected = [np.quantile(level[outside].abs(), gradients.QUANTILES, method="nearest") for level in levels]
    assert one == 1
    assert values == pytest.approx(np.concatenate(expected), rel=1e-5)
    assert factor == pytest.approx(float(factors.median()))


def test_looks_are_averaged_and_what_is_not_finite_is_left_out() -> None:
    student, said = _batch()
    loss = parse_loss("gdkd:k=3")
    looks = [gradients.look(part * student, said, loss) for part in (1.0, 0.5, torch.inf)]
    assert looks[2].tolist() == [0] * gradients.LENGTH
    told = gradients.told(torch.stack(looks).sum(0).tolist(), loss, 12)["gradients"]
    assert told["k"] == 3
    assert told["temperature"] == 4
    assert [*told["top_level"], *told["other"], *told["kd"]] == pytest.approx(
        ((looks[0] + looks[1]) / 2)[2:].tolist(), rel=1e-3
    )
    assert gradients.told(looks[2].tolist(), loss, 12) == gradients.told((), loss, 12) == {}


def test_many_classes_are_looked_at_in_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    student, said = _batch()
    monkeypatch.setattr(gradients, "_MOST_VALUES", 36)
    three = TeacherBatch(said.logits[:3], said.top[:3], said.rows[:3], 0)
    loss = parse_loss("gdkd:k=3")
    assert torch.equal(gradients.look(student, said, loss), gradients.look(student[:3], three, loss))


@pytest.mark.parametrize("loss", ["gdkd:k=2", "kd", "ce"])
def test_what_a_training_tells(
    tmp_path: Path, digits: ArraySource, digits_test: ArraySource, digits_cache: Path, loss: str
) -> None:
    out = tmp_path / "s"
    options: dict[str, Any] = {"student": "cnn-s", "epochs": 2, "batch_size": 64, "threads": 1, "loss": loss}
    cache = None if loss == "ce" else open_cache(digits_cache)
    train(TrainOptions(out=out, **options), digits, digits_test, cache=cache)
    lines = read_run(out).lines
    assert [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()] == list(lines)
    if loss == "ce":
        assert not any("gradients" in line for line in lines)
        return
    for line in lines:
        told = line["gradients"]
        assert told["k"] == (2 if loss.startswith("gdkd") else 5)
        assert told["factor"] > 1
        for name in NAMES:
            assert len(told[name]) == len(gradients.QUANTILES)
            assert told[name] == sorted(told[name])
            assert told[name][2] > 0
    assert lines[0]["gradients"] != lines[1]["gradients"]


def test_the_look_is_part_of_the_state(digits: ArraySource) -> None:
    model = torch.nn.Linear(2, 2)
    options = TrainOptions(student="cnn-s", epochs=1, out=Path("o"))
    state = State.begin(options, model, torch.device("cpu"), 1)
    student, said = _batch()
    seen = gradients.look(student, said, parse_loss("kd"))
    state.add({"loss": torch.tensor(1.0)}, 20)
    state.add_norm(torch.tensor(1.0))
    state.add_gradients(seen)
    totals = json.loads(json.dumps(state.totals()))
    again = State.begin(options, model, torch.device("cpu"), 1)
    again.take_over(totals, torch.device("cpu"))
    assert again.gradients is not None
    assert torch.equal(again.gradients, seen)
    state.epoch_done({})
    assert state.gradients is None
    with pytest.raises(ValueError, match=r"gradients of \[3\]"):
        again.take_over({**totals, "gradients": [1.0, 2.0, 3.0]}, torch.device("cpu"))
