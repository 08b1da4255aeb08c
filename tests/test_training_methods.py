"""Methods with heads of their own: losses against references, trainings from a cache, and what is left of them."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_resume import _Killed, _killed_at, _same
from torch import Tensor, nn

import gdkd_cache as gc
from gdkd_cache.building.features import class_features
from gdkd_cache.building.options import SignalOptions
from gdkd_cache.cache.batch import TeacherBatch
from gdkd_cache.data.source import ArraySource
from gdkd_cache.data.subset import labelled
from gdkd_cache.errors import CacheError, GdkdCacheError, MismatchError, ModelError, UsageError
from gdkd_cache.models.card import ModelCard
from gdkd_cache.models.heads import TwoHeads
from gdkd_cache.models.network import Network
from gdkd_cache.models.opening import open_network
from gdkd_cache.models.weights import save_weights
from gdkd_cache.training.methods.nd import norm_direction
from gdkd_cache.training.tasks import task_of

_KD = "kd:temperature=2"


def _options(out: Path, **fields: Any) -> gc.TrainOptions:
    defaults: dict[str, Any] = {"student": "cnn-s", "epochs": 2, "loss": _KD, "threads": 1, "num_workers": 0}
    return gc.TrainOptions(out=out, **(defaults | fields))


def bottled(num_classes: int) -> nn.Module:
    """A network that does something with what its last linear layer gives."""
    return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes), nn.Softplus())


def convolved(num_classes: int) -> nn.Module:
    """A network without a linear layer."""
    return nn.Sequential(nn.Conv2d(3, num_classes, 8), nn.Flatten())


@pytest.fixture(scope="module")
def signal(tmp_path_factory: pytest.TempPathFactory, digits: ArraySource, digits_cache: Path, weights: Path) -> Path:
    """The class means of a teacher's features."""
    path = tmp_path_factory.mktemp("signal") / "digits.signal"
    network = gc.open_network("cnn-s", weights, 10, device="cpu")
    class_features(SignalOptions(out=path, batch_size=100, num_workers=0), gc.open_cache(digits_cache), digits, network)
    return path


def _wider(path: Path, cache: Path) -> Path:
    """A signal of more features than cnn-s has."""
    generator = torch.Generator().manual_seed(0)
    arrays = {"features": torch.randn(10, 40, generator=generator), "norms": torch.rand(10, generator=generator) + 5}
    gc.pack_signal(path, gc.open_cache(cache), arrays, per="class")
    return path


def test_two_heads_are_mixed() -> None:
    """Evaluated: log(alpha softmax(a) + (1 - alpha) softmax(b / beta)), class by class, at the ends too."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(7, 5, generator=generator)
    for alpha, beta in ((0.5, 0.5), (0.25, 3.0), (0.0, 1.0), (1.0, 1.0)):
        heads = TwoHeads(nn.Linear(5, 4), alpha=alpha, beta=beta).eval()
        nn.init.normal_(heads.teacher.weight, generator=generator)
        given = heads(features).tolist()
        logits = [layer(features).tolist() for layer in (heads.labels, heads.teacher)]
        for row, own in enumerate(given):
            one, other = (
                [math.exp(z / t) / sum(math.exp(y / t) for y in part[row]) for z in part[row]]
                for part, t in zip(logits, (1.0, beta), strict=True)
            )
            wanted = [math.log(alpha * p + (1 - alpha) * q) for p, q in zip(one, other, strict=True)]
            assert own == pytest.approx(wanted, abs=1e-5)


def _batch(width: int) -> tuple[Tensor, Tensor, TeacherBatch]:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(12, width, generator=generator).requires_grad_()
    labels = torch.randint(10, (12,), generator=generator)
    labels[::3] = -1
    teacher = torch.randn(12, 10, generator=generator)
    return outputs, labels, TeacherBatch(teacher, teacher.topk(3).indices, torch.arange(12), 0)


def _log_softmax(z: Tensor) -> Tensor:
    return z - z.exp().sum(-1, keepdim=True).log()


def test_dho_loss() -> None:
    """Cross-entropy of the first head over labelled rows, KD of the second over all; gradients of each stay apart."""
    task = task_of(_options(Path("out"), method="dho", ce_weight=0.5, distillation_weight=2.0))
    outputs, labels, said = _batch(20)
    terms = task.terms(outputs, labels, said, 0)
    (found,) = torch.autograd.grad(terms["loss"], outputs)
    z = outputs.detach().double().requires_grad_()
    known = [row for row in range(12) if labels[row] >= 0]
    ce = -sum(_log_softmax(z[row, :10])[labels[row]] for row in known) / len(known)
    p, q = (_log_softmax(one.double() / 2) for one in (said.logits, z[:, 10:]))
    kd = 4 * (p.exp() * (p - q)).sum(-1).mean()
    (wanted,) = torch.autograd.grad(0.5 * ce + 2 * kd, z)
    assert terms["ce"].item() == pytest.approx(float(torch.as_tensor(ce).detach()), rel=1e-6)
    assert terms["distillation"].item() == pytest.approx(kd.item(), rel=1e-5)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-7)
    assert not found[labels < 0, :10].any()
    assert found[labels < 0, 10:].any()


def test_a_batch_without_labels() -> None:
    """Its cross-entropy is 0, and so is its gradient; the teacher teaches all the same."""
    for method in (None, "dho"):
        task = task_of(_options(Path("out"), method=method))
        outputs, labels, said = _batch(20 if method else 10)
        terms = task.terms(outputs, torch.full_like(labels, -1), said, 0)
        (gradient,) = torch.autograd.grad(terms["loss"], outputs)
        assert terms["ce"].item() == 0
        assert gradient.isfinite().all()
        assert gradient.any()


def test_norm_direction() -> None:
    """Row by row in float64, values and gradients; without a label a row has no part in it."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(9, 6, generator=generator, dtype=torch.float64).requires_grad_()
    centres = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    norms = torch.tensor([0.1, 2.0, 5.0, 3.0], dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, -1, 0, 1, -1, 2])
    found = norm_direction(features, labels, centres, norms)
    losses = []
    for f, y in zip(features, labels.tolist(), strict=True):
        if y >= 0:
            length = (f * f).sum().sqrt()
            largest = length if length.item() > norms[y].item() else norms[y]
            losses.append(1 - (f * centres[y]).sum() / (centres[y] ** 2).sum().sqrt() / largest)
    wanted = torch.stack(losses).mean()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)
    gradients = [torch.autograd.grad(one, features)[0] for one in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)
    assert norm_direction(features, torch.full((9,), -1), centres, norms).item() == 0


def test_class_features(digits: ArraySource, digits_cache: Path, teacher: Network, signal: Path) -> None:
    """They are the means over each class of what the last linear layer reads, and of its norms."""
    found = gc.open_signal(signal, gc.open_cache(digits_cache)).arrays
    pixels = torch.from_numpy(digits.images).float() / 255
    features = nn.Sequential(*list(teacher.model.children())[:-1])((pixels - 0.3) / 0.4).detach().double()
    for number in range(10):
        own = features[torch.from_numpy(digits.labels == number)]
        torch.testing.assert_close(found["features"][number].double(), own.mean(0), rtol=1e-5, atol=1e-6)
        assert float(found["norms"][number]) == pytest.approx(float(own.norm(dim=1).mean()), rel=1e-5)


@pytest.mark.parametrize("method", ["dho:alpha=0.25,beta=2", "nd:weight=2"])
def test_trainings_go_on_to_the_bit(
    method: str,
    tmp_path: Path,
    digits: ArraySource,
    digits_test: ArraySource,
    digits_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a moving average, in parts, in the midst of an epoch; what is left evaluates as it did while training."""
    cache = gc.open_cache(digits_cache)
    fields: dict[str, Any] = {"method": method, "labelled": "60", "ema": 0.9, "accumulate": 2, "save_every": "1"}
    if method.startswith("nd"):
        fields["signal"] = _wider(tmp_path / "wide.signal", digits_cache)
    whole, stopped = (_options(tmp_path / name, **fields) for name in ("whole", "stopped"))
    result = gc.train(whole, digits, digits_test, cache=cache)
    with _killed_at(6, monkeypatch), pytest.raises(_Killed):
        gc.train(stopped, digits, digits_test, cache=cache)
    gc.train(stopped, digits, digits_test, cache=cache)
    _same(stopped.out, whole.out)
    opened = open_network(None, whole.out / "last.safetensors", 10, device="cpu")
    logits = opened.logits(torch.from_numpy(digits_test.images))
    assert logits.shape == (64, 10)
    assert float((logits.argmax(1).numpy() == digits_test.labels).mean()) == result.last_accuracy
    names = load_file(whole.out / "last.safetensors").keys()
    if method.startswith("nd"):  # what only trains the network is no part of it
        assert opened.description.name == "cnn-s"
        assert not [name for name in names if "adapter" in name]
        assert [
            name
            for name in load_file(whole.out / "state.safetensors")
            if name.startswith("model.") and "adapter" in name
        ]
    else:
        assert opened.description.name == "two-heads:cnn-s"
        heads = next(module for module in opened.model.modules() if isinstance(module, TwoHeads))
        assert (float(heads.alpha), float(heads.beta)) == (0.25, 2.0)
    line = (whole.out / "metrics.jsonl").read_text().splitlines()[0]
    assert ('"nd"' in line) == method.startswith("nd")


def test_labels_of_some_rows(digits: ArraySource) -> None:
    """So many of the smallest key hash keep theirs, as for `subset`; a digest of its own."""
    hidden = labelled(digits, 40)
    assert (len(hidden), hidden.unlabelled) == (256, 216)
    kept = hidden.labels >= 0
    assert (hidden.labels[kept] == digits.labels[kept]).all()
    assert hidden.digest != digits.digest
    assert (labelled(digits, 30).labels >= 0)[kept].sum() == 30


def _refusals() -> list[tuple[dict[str, Any], type[GdkdCacheError], str]]:
    return [
        ({"method": "dho", "skip_epochs": 1}, UsageError, "method dho trains both heads"),
        ({"method": "dho:gamma=1"}, UsageError, "method dho: cannot read 'gamma=1'"),
        ({"method": "dho:alpha=2"}, UsageError, "alpha is 2.0; it must be"),
        ({"method": "other"}, UsageError, "method is 'other'"),
        ({"method": "nd"}, UsageError, "gdkd-cache signal"),
        ({"method": "dho", "student": "test_training_methods:convolved"}, ModelError, "no linear layer of 10 outputs"),
        (
            {"method": "dho", "student": "test_training_methods:bottled"},
            ModelError,
            "something else than its last linear layer",
        ),
        ({"labelled": "50", "loss": "dkd"}, UsageError, "dkd needs one label an image; 206 of 256"),
        ({"labelled": "0"}, UsageError, "labelled is 0"),
    ]


@pytest.mark.parametrize(("fields", "kind", "said"), _refusals())
def test_refusals(
    fields: dict[str, Any],
    kind: type[GdkdCacheError],
    said: str,
    tmp_path: Path,
    digits: ArraySource,
    digits_test: ArraySource,
    digits_cache: Path,
) -> None:
    with pytest.raises(kind, match=said):
        gc.train(_options(tmp_path / "out", **fields), digits, digits_test, cache=gc.open_cache(digits_cache))
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_refusals_without_a_cache(tmp_path: Path, digits: ArraySource, digits_test: ArraySource) -> None:
    for fields, said in (
        ({"labelled": "50"}, "cross-entropy learns nothing"),
        ({"method": "dho"}, "goes with a distillation loss"),
        ({"signal": tmp_path}, "goes with the cache"),
    ):
        with pytest.raises(UsageError, match=said):
            gc.train(_options(tmp_path / "out", loss="ce", **fields), digits, digits_test)


def test_signals_that_no_method_needs(
    tmp_path: Path, digits: ArraySource, digits_test: ArraySource, digits_cache: Path, signal: Path
) -> None:
    cache = gc.open_cache(digits_cache)
    with pytest.raises(UsageError, match="nothing here needs it"):
        gc.train(_options(tmp_path / "out", signal=signal), digits, digits_test, cache=cache)
    rows = tmp_path / "rows.signal"
    gc.pack_signal(rows, cache, {"hard": np.ones(256)}, per="row", about="how hard each is")
    with pytest.raises(MismatchError, match="method nd needs one of"):
        gc.train(_options(tmp_path / "out", method="nd", signal=rows), digits, digits_test, cache=cache)


def test_signals_are_checked(tmp_path: Path, digits_cache: Path, caches: dict[str, Path], signal: Path) -> None:
    """A flipped bit, other data, other shapes and numbers that are none are found; equal ones are equal bytes."""
    cache, data = gc.open_cache(digits_cache), signal.read_bytes()
    known = gc.open_signal(signal, cache)
    again = tmp_path / "again.signal"
    gc.pack_signal(again, cache, known.arrays, per="class", about=known.about)
    assert again.read_bytes() == data
    broken = tmp_path / "broken.signal"
    for place in (0, 9, 60, len(data) // 2, len(data) - 1):
        broken.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises((CacheError, MismatchError), match="signal"):
            gc.open_signal(broken, cache)
    broken.write_bytes(data[:-4])
    with pytest.raises(CacheError, match="cannot be read"):
        gc.open_signal(broken, cache)
    with pytest.raises(MismatchError, match="is of data"):
        gc.open_signal(signal, gc.open_cache(caches["dense"]))
    for arrays, said in (
        ({"a": np.ones((9, 2))}, r"it must be \[class, ...\]: 10"),
        ({"a": np.full((10, 2), np.nan)}, "NaN or infinity"),
        ({}, "no arrays"),
        ({"a b": np.ones(10)}, "named as a variable"),
    ):
        with pytest.raises(UsageError, match=said):
            gc.pack_signal(tmp_path / "new.signal", cache, arrays, per="class")
    with pytest.raises(MismatchError, match="exists"):
        gc.pack_signal(again, cache, known.arrays, per="class")


@pytest.mark.parametrize("name", ["two-heads:os:getcwd", "two-heads:two-heads:os:getcwd", "two-heads:hf:/etc"])
def test_cards_load_no_code_through_a_second_head(name: str, tmp_path: Path) -> None:
    card = ModelCard(name=name, num_classes=10, size=(8, 8), mean=(0.3, 0.3, 0.3), std=(0.4, 0.4, 0.4))
    save_weights(nn.Linear(2, 2), card, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match="no file may"):
        open_network(None, tmp_path / "a.safetensors", 10, device="cpu")
