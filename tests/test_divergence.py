"""A training whose numbers are not finite any more ends with one line, and leaves what it had."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from gdkd_cache_cli.main import main
from safetensors.torch import load_file
from small import linear_student
from torch import Tensor, nn

from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import MismatchError, ModelError
from gdkd_cache.training import train as training
from gdkd_cache.training.evaluate import Evaluator
from gdkd_cache.training.train import TrainOptions, train


class _Breaking(nn.Module):
    """A network that goes wrong after so many batches of training, in a way of its own."""

    def __init__(self, way: str, after: int) -> None:
        super().__init__()
        self.net, self.way, self.left = linear_student(10), way, after
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))  # not finite from the start, and rightly so
        if way == "weights":
            next(self.net.parameters()).register_hook(lambda grad: grad * math.inf if self.left == 0 else grad)

    def forward(self, images: Tensor) -> Tensor:
        self.left -= self.training
        logits = self.net(images)
        breaks = self.left <= 0 and self.way == ("loss" if self.training else "evaluation")
        return logits * math.nan if breaks else logits


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("loss", r"epoch 2: step 2: the loss became infinite or NaN \(loss nan, ce nan\) on the images .* 60 more"),
        ("weights", "epoch 2: net.1.weight of the network is not finite"),
        ("evaluation", "epoch 2: on digits/test the network's outputs, or their loss, are not finite"),
    ],
)  # fmt: skip
def test_a_training_that_diverges(
    tmp_path: Path, digits: ArraySource, digits_test: ArraySource, monkeypatch: pytest.MonkeyPatch, way: str, said: str
) -> None:
    """At the end of the second epoch; the first one's files stay, and are the last to be written."""
    # One batch to try the network, then four steps an epoch.
    monkeypatch.setattr(training, "build_model", lambda name, num_classes: _Breaking(way, 7 if way == "loss" else 9))
    options = TrainOptions(student="cnn-s", epochs=4, lr=0.1, out=tmp_path / "s")
    with pytest.raises(ModelError, match=said) as caught:
        train(options, digits, digits_test)
    assert str(caught.value).endswith("last.safetensors has the weights of epoch 1")
    (line,) = (tmp_path / "s/metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["epoch"] == 1
    for name in ("best", "last"):
        assert all(
            value.isfinite().all()
            for key, value in load_file(tmp_path / f"s/{name}.safetensors").items()
            if key != "mask"
        )


def test_a_learning_rate_too_high(tmp_path: Path) -> None:
    """From the command line: one line, exit code 1; the earlier training stays, byte for byte."""
    out = tmp_path / "s"
    arguments = ["train", "--loss", "ce", "--data", "digits", "--student", "cnn-s", "--epochs", "1", "--out", str(out)]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "log.txt"}
    run = CliRunner().invoke(main, [*arguments, "--force", "--lr", "1e9"])
    assert run.exit_code == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith("Error: epoch 1: step ")
    assert "the loss became infinite or NaN" in line
    assert line.endswith("s stays as it was")
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name != "log.txt"} == before


def test_evaluating_what_diverged(digits_test: ArraySource) -> None:
    model = linear_student(10)
    evaluator = Evaluator(digits_test, mean=(0.0,) * 3, std=(1.0,) * 3, device=torch.device("cpu"))
    assert evaluator(model).num_rows == 64
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(ModelError, match="on digits/test the network's outputs, or their loss, are not finite"):
        evaluator(model)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda names: [*names[:3], "tree", *names[4:]], "class 3 is tree in .*, and '3' in .*has 10; both must"),
        (
            lambda names: names[:9],
            r"class 9 is absent in evaluation source digits/test, which has 9 classes, and '9' in",
        ),
    ],
)
def test_other_classes_are_named(
    tmp_path: Path, digits: ArraySource, digits_test: ArraySource, change: Callable[[list[str]], list[str]], said: str
) -> None:
    classes = change(list(digits.classes))
    other = replace(digits_test, classes=classes, labels=digits_test.labels % len(classes))
    with pytest.raises(MismatchError, match=said):
        train(TrainOptions(student="cnn-s", epochs=1, out=tmp_path), digits, other)
