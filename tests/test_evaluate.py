"""Evaluation: its figures are torchmetrics', whatever the ranks; agreement with a teacher is told from its cache."""

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from gdkd_cache_cli.main import main
from small import build_small, fork, linear_student
from torch import Tensor, distributed, nn
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from gdkd_cache import open_cache
from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import ModelError
from gdkd_cache.models.build import build_model
from gdkd_cache.models.network import Network
from gdkd_cache.models.normalization import normalize_pixels
from gdkd_cache.models.weights import load_card, save_weights
from gdkd_cache.training.agreement import agree
from gdkd_cache.training.class_evaluation import ClassEvaluation
from gdkd_cache.training.evaluate import Evaluator

_MEAN, _STD = (0.3, 0.3, 0.3), (0.4, 0.4, 0.4)
_CPU = torch.device("cpu")


def _run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def _evaluated(model: nn.Module, source: ArraySource, batch_size: int = 512) -> ClassEvaluation:
    found = Evaluator(source, mean=_MEAN, std=_STD, device=_CPU, batch_size=batch_size)(model)
    assert isinstance(found, ClassEvaluation)
    return found


def _student(num_classes: int = 10) -> nn.Module:
    """One that is right about some classes more often than about others."""
    torch.manual_seed(2)
    return linear_student(num_classes)


def _logits(model: nn.Module, source: ArraySource) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        logits = model(normalize_pixels(torch.from_numpy(source.images), _MEAN, _STD))
    return logits, torch.from_numpy(source.labels)


@pytest.mark.parametrize("batch_size", [7, 512])
def test_the_figures_are_torchmetrics(digits: ArraySource, batch_size: int) -> None:
    model = _student()
    logits, labels = _logits(model, digits)
    found = _evaluated(model, digits, batch_size=batch_size)
    measured = {
        "accuracy": multiclass_accuracy(logits, labels, 10, average="micro"),
        "top5_accuracy": multiclass_accuracy(logits, labels, 10, average="micro", top_k=5),
        "loss": nn.functional.cross_entropy(logits, labels),
        "calibration_error": multiclass_calibration_error(logits, labels, 10, n_bins=15, norm="l1"),
    }
    for name, value in measured.items():
        assert getattr(found, name) == pytest.approx(float(value), rel=1e-5), name
    assert 0 < found.accuracy < found.top5_accuracy < 1
    by_class = multiclass_accuracy(logits, labels, 10, average="none")
    assert found.class_accuracies == pytest.approx(by_class.tolist())
    assert len(set(found.class_accuracies)) == 8
    assert found.num_rows == 256


def test_two_ranks_sum_what_one_counts(tmp_path: Path, digits: ArraySource) -> None:
    """Each image once; 255 of them are no multiple of two."""
    source = digits.take(np.arange(255))
    assert isinstance(source, ArraySource)
    model = _student()

    def run(rank: int) -> None:
        distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=rank, world_size=2)
        found = _evaluated(model, source, batch_size=16)
        distributed.destroy_process_group()
        (tmp_path / str(rank)).write_text(json.dumps(asdict(found)))

    ranks = [fork(partial(run, rank)) for rank in range(2)]
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    first, second = (json.loads((tmp_path / str(rank)).read_text()) for rank in range(2))
    assert first == second
    alone = json.loads(json.dumps(asdict(_evaluated(model, source))))
    assert first["num_rows"] == 255
    for name, value in alone.items():
        assert first[name] == pytest.approx(value, rel=1e-6), name


def test_a_class_without_images(digits: ArraySource) -> None:
    source = digits.take(np.flatnonzero(digits.labels != 4))
    assert isinstance(source, ArraySource)
    found = _evaluated(_student(), source).class_accuracies
    assert [accuracy is None for accuracy in found] == [number == 4 for number in range(10)]


class _Constant(nn.Module):
    """Gives all images the same logits."""

    logits: Tensor

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.register_buffer("logits", torch.tensor(logits))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)


def test_equal_logits(digits: ArraySource) -> None:
    """The lower class id is the larger; a confidence of one is calibrated where it is right."""
    found = _evaluated(_Constant([0.0] * 10), digits)
    assert found.accuracy == (digits.labels == 0).mean()
    assert found.top5_accuracy == (digits.labels < 5).mean()
    assert found.calibration_error == pytest.approx(abs(0.1 - found.accuracy), abs=1e-6)
    sure = _evaluated(_Constant([1000.0] + [0.0] * 9), digits)
    assert sure.calibration_error == 1 - sure.accuracy


def test_few_classes(digits: ArraySource) -> None:
    source = replace(digits, classes=list("abcde"), labels=digits.labels % 5)
    assert _evaluated(_student(5), source).top5_accuracy == 1


def test_eval_tells_all(tmp_path: Path, weights: Path) -> None:
    common = ("eval", "--data", "digits", "--weights", weights, "--device", "cpu")
    said = json.loads(_run(*common, "--json").stdout)
    assert set(said) == {"accuracy", "top5_accuracy", "loss", "calibration_error", "num_rows", "classes"}
    assert [row["name"] for row in said["classes"]] == [str(digit) for digit in range(10)]
    assert sum(row["rows"] for row in said["classes"]) == said["num_rows"] == 359
    hits = sum(row["accuracy"] * row["rows"] for row in said["classes"])
    assert hits / 359 == pytest.approx(said["accuracy"])
    line = (
        f"accuracy {said['accuracy']:.2%}, top-5 {said['top5_accuracy']:.2%}, NLL {said['loss']:.4f}, "
        f"ECE {said['calibration_error']:.4f} on 359 images\n"
    )
    assert _run(*common).stdout == line
    shown = _run(*common, "--per-class").stdout
    assert shown.endswith(line)
    listed = [float(row.split("│")[4].strip(" %")) for row in shown.splitlines() if row.startswith("│")]
    assert listed == sorted(listed)
    assert len(listed) == 10
    assert json.loads(_run(*common, "--split", "train", "--json").stdout)["num_rows"] == 1438


def test_agreement_with_oneself(digits: ArraySource, digits_cache: Path, teacher: Network) -> None:
    """The teacher itself names its own first classes, and is as far from them as the cache is wrong."""
    dataset = open_cache(digits_cache).dataset(digits)
    found = agree(teacher.model, dataset, mean=teacher.mean, std=teacher.std, device=_CPU)
    assert (found.agreement, found.view, found.num_rows) == (1.0, 0, 256)
    assert abs(found.divergence) < 1e-5
    assert found.accuracy is not None


def test_agreement_with_a_teacher(digits: ArraySource, digits_cache: Path, teacher: Network) -> None:
    """As with the teacher itself, run on the same views."""
    model, cache = _student(), open_cache(digits_cache)
    found = agree(model, cache.dataset(digits), mean=_MEAN, std=_STD, device=_CPU, batch_size=7)
    same, right, apart = 0, 0, 0.0
    for pixels, labels, _ in cache.dataset(digits).loader(0, batch_size=64, normalize=None):
        with torch.no_grad():
            logits = model(normalize_pixels(pixels, _MEAN, _STD))
        said = teacher.logits(pixels)
        p = said.softmax(1)
        same += int((logits.argmax(1) == said.argmax(1)).sum())
        right += int((logits.argmax(1) == labels).sum())
        apart += float((p * (p.log() - logits.log_softmax(1))).sum())
    assert 0 < found.agreement < 1
    assert (found.agreement, found.accuracy) == (same / 256, right / 256)
    assert found.divergence == pytest.approx(apart / 256, rel=1e-3)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(ModelError, match="on view 0 the network's outputs, or what the teacher said, are not finite"):
        agree(model, cache.dataset(digits), mean=_MEAN, std=_STD, device=_CPU)


def test_eval_against_a_cache(tmp_path: Path, digits: ArraySource, digits_cache: Path, weights: Path) -> None:
    """The training split of the data, or the part of it that the cache was built from."""
    keys = tmp_path / "keys.txt"
    keys.write_text("\n".join(digits.keys))
    common = ("eval", "--data", "digits", "--subset", keys, "--weights", weights, "--device", "cpu")
    against = (*common, "--cache", digits_cache)
    said = json.loads(_run(*against, "--json").stdout)
    assert set(said) == {"agreement", "divergence", "accuracy", "view", "num_rows"}
    assert (said["agreement"], said["num_rows"]) == (1.0, 256)
    line = (
        f"agreement with the teacher 100.00%, KL {said['divergence']:.4f}, accuracy {said['accuracy']:.2%}, on view 0"
    )
    assert _run(*against).stdout == f"{line} of 256 images\n"
    for wrong, code, text in (
        ((*against, "--per-class"), 2, "--per-class goes without --cache"),
        ((*common, "--digest", "sha256:0"), 2, "--digest goes with --cache"),
        ((*common, "--local-copy", tmp_path), 2, "--local-copy goes with --cache"),
        ((*against, "--digest", "sha256:0"), 1, "sha256:0"),
        ((*against, "--recipe", "none"), 1, "is not the cache's crop-flip"),
        ((*against, "--split", "test"), 1, "are not in source digits/test"),
    ):
        result = _run(*wrong)
        assert (result.exit_code, text in result.stderr) == (code, True), result.output


def test_agreement_on_mixed_images(tmp_path: Path, digits: ArraySource, teacher: Network) -> None:
    """Which have no one label, and need none for this."""
    mixed = tmp_path / "mixed.toml"
    mixed.write_text('[[steps]]\nstep = "horizontal_flip"\n[mix]\nmixup_alpha = 0.8\n')
    build_small(tmp_path / "a.zarr", digits, teacher, codec="dense", recipe=str(mixed))
    dataset = open_cache(tmp_path / "a.zarr").dataset(digits)
    found = agree(teacher.model, dataset, mean=teacher.mean, std=teacher.std, device=_CPU)
    assert (found.agreement, found.accuracy) == (1.0, None)


def test_agreement_at_the_students_size(tmp_path: Path, digits: ArraySource, digits_cache: Path, weights: Path) -> None:
    """A student that was trained on the views at another size sees them so, as its card says."""
    card = load_card(weights)
    assert card is not None
    torch.manual_seed(0)
    save_weights(build_model("cnn-s", 10), replace(card, size=(16, 16)), tmp_path / "large.safetensors")
    keys = tmp_path / "keys.txt"
    keys.write_text("\n".join(digits.keys))
    command = ("eval", "--data", "digits", "--subset", keys, "--cache", digits_cache, "--json", "--device", "cpu")
    said = json.loads(_run(*command, "--weights", tmp_path / "large.safetensors").stdout)
    torch.manual_seed(0)
    model = build_model("cnn-s", 10).eval()
    dataset = open_cache(digits_cache).dataset(digits, size=16)
    assert said["divergence"] == pytest.approx(
        agree(model, dataset, mean=card.mean, std=card.std, device=_CPU).divergence, rel=1e-5
    )
