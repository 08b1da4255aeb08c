"""A teacher that is wrong is refused before anything is built, by name of the fault; a right one never is."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from gdkd_cache_cli.main import main
from small import build_small, counting, take
from torch import nn

from gdkd_cache import open_cache, open_source, pack
from gdkd_cache.building.figures import Tally, at_least, at_most, chance, much_better
from gdkd_cache.building.relabelling import relabelling
from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import MismatchError, ModelError
from gdkd_cache.models.card import ModelCard
from gdkd_cache.models.classes import ClassLogits
from gdkd_cache.models.network import Network
from gdkd_cache.models.normalization import NAMED
from gdkd_cache.models.opening import open_network
from gdkd_cache.models.weights import save_weights
from gdkd_cache.store.facts import Examined

_NAMES = ["teal", "red", "lime", "navy", "gold", "plum", "grey", "rose"]
_MEAN, _STD = NAMED["imagenet"].mean, NAMED["imagenet"].std


class _Nearest(nn.Module):
    """Says which of some colours is the nearest to an image's mean; it saw them normalised as for ImageNet."""

    def __init__(self, colours: np.ndarray) -> None:
        super().__init__()
        scaled = (colours / 255 - np.array(_MEAN)) / np.array(_STD)
        self.colours = nn.Parameter(torch.from_numpy(scaled).float())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return -10 * torch.cdist(images.mean((2, 3)), self.colours).square()


@pytest.fixture(scope="module")
def coloured() -> tuple[ArraySource, np.ndarray]:
    """Noisy images of eight colours, and these: a nearest one is right about nearly all."""
    rng = np.random.default_rng(0)
    colours = np.array(
        [[40, 160, 150], [200, 60, 60], [120, 220, 90], [50, 50, 150], [220, 180, 70], [160, 90, 170], [120] * 3,
         [240, 150, 150]]
    )  # fmt: skip
    labels = rng.integers(0, 8, 800)
    pixels = colours[labels][:, :, None, None] + rng.normal(0, 30, (800, 3, 8, 8)) + rng.normal(0, 12, (800, 3, 1, 1))
    source = ArraySource(
        name="colours",
        images=pixels.clip(0, 255).astype(np.uint8),
        labels=labels,
        keys=[f"{row:03d}" for row in range(800)],
        classes=_NAMES,
    )
    return source, colours


@pytest.fixture
def right(coloured: tuple[ArraySource, np.ndarray], teacher: Network) -> Network:
    """The nearest colour, shown images as it must be."""
    description = replace(teacher.description, accuracy=None)
    return replace(teacher, model=_Nearest(coloured[1]), mean=_MEAN, std=_STD, size=None, description=description)


def _build(out: Path, source: ArraySource, network: Network, **options: Any) -> Any:
    defaults = {"accept_teacher": False, "num_views": 1, "recipe": "none", "codec": "dense:dtype=float32"}
    return build_small(out, source, network, **(defaults | options)).manifest


class _Output(nn.Module):
    """A network whose outputs are in another order."""

    def __init__(self, model: nn.Module, order: list[int]) -> None:
        super().__init__()
        self.model, self.order = model, order

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images)[:, self.order]


class _Reversed(nn.Module):
    """A network that was trained on BGR."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images.flip(1))


def _ordered(order: list[int]) -> Callable[[Network], Network]:
    return lambda right: replace(right, model=_Output(right.model, order))


def _fed(mean: float, std: float) -> Callable[[Network], Network]:
    return lambda right: replace(right, mean=(mean,) * 3, std=(std,) * 3)


_BY_NAME = sorted(range(8), key=_NAMES.__getitem__)
_FAULTS: dict[str, tuple[Callable[[Network], Network], str]] = {
    "order": (_ordered([3, 0, 1, 2, 7, 6, 4, 5]), "order of its classes is at fault.*none of the usual .*--classes"),
    "sorted": (_ordered(_BY_NAME), "order of its classes is at fault.*in the order of the sorted names"),
    "half": (_fed(0.5, 0.5), r"normalisation of its inputs \(imagenet for half\) is at fault.* --normalize imagenet"),
    "0..1": (_fed(0, 1), r"normalisation of its inputs \(imagenet for pixels in 0..1 as they are\) is at fault"),
    "0..255": (_fed(0, 1 / 255), r"normalisation of its inputs \(imagenet for pixels in 0..255\) is at fault"),
    "BGR": (lambda right: replace(right, model=_Reversed(right.model)), r"order of its channels \(BGR for RGB\) is at"),
    "BGR of 0..1": (
        lambda right: replace(_fed(0, 1)(right), model=_Reversed(right.model)),
        r"normalisation of its inputs \(imagenet for .*\) and the order of its channels \(BGR for RGB\) is at fault",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", _FAULTS)
def test_faults_are_named(tmp_path: Path, coloured: tuple[ArraySource, np.ndarray], right: Network, fault: str) -> None:
    """Nothing is built, and the message is one line that says what to type; it can be taken all the same."""
    spoil, said = _FAULTS[fault]
    with pytest.raises(ModelError, match=f"{said}.*--accept-teacher") as caught:
        _build(tmp_path / "a.zarr", coloured[0], spoil(right))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "a.zarr").glob("*.json"))
    examination = _build(tmp_path / "a.zarr", coloured[0], spoil(right), accept_teacher=True).identity.examination
    assert examination is not None
    assert examination.views.top1 < 0.8


def test_the_size_of_views(tmp_path: Path, coloured: tuple[ArraySource, np.ndarray], right: Network) -> None:
    class OfSixteen(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.model(images if images.shape[-1] == 16 else images * 0)

    with pytest.raises(ModelError, match=r"size of the views \(16x16 does better\) is at fault.*name a recipe"):
        _build(tmp_path / "a.zarr", coloured[0], replace(right, model=OfSixteen(right.model), size=(16, 16)))


def test_a_right_teacher(tmp_path: Path, coloured: tuple[ArraySource, np.ndarray], right: Network) -> None:
    """The cache says how right it is, wherever the cache is described; interrupted or not, it is the same cache."""
    source, _ = coloured
    manifest = _build(tmp_path / "a.zarr", source, right)
    examination = manifest.identity.examination
    assert examination is not None
    assert (examination.dropped, examination.evaluated) == (None, None)
    assert examination.views.rows == 800
    assert examination.views.top1 > 0.9
    counted, _ = counting(right, 2 + 800 + 200 + 1000)
    with pytest.raises(KeyboardInterrupt):
        _build(tmp_path / "b.zarr", source, counted, shard_rows=100, num_views=3)
    whole = _build(tmp_path / "c.zarr", source, right, shard_rows=100, num_views=3)
    assert _build(tmp_path / "b.zarr", source, right, shard_rows=100, num_views=3) == whole
    said = CliRunner().invoke(main, ["inspect", str(tmp_path / "a.zarr")]).stdout
    line = next(line for line in said.splitlines() if line.strip().startswith("examined"))
    assert f"top-1 {examination.views.top1:.2%}" in line
    assert "on 800 augmented views" in line
    assert line in (tmp_path / "a.zarr" / "README.md").read_text()


def _noisy(source: ArraySource, share: float) -> ArraySource:
    rng = np.random.default_rng(1)
    labels = np.where(rng.random(len(source)) < share, rng.integers(0, 8, len(source)), source.labels)
    return replace(source, labels=labels)


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_noisy_labels(tmp_path: Path, coloured: tuple[ArraySource, np.ndarray], right: Network, share: float) -> None:
    assert _build(tmp_path / "a.zarr", _noisy(coloured[0], share), right).identity.examination.views.top1 < 0.85


def test_few_rows_and_labels_that_say_nothing(
    tmp_path: Path, coloured: tuple[ArraySource, np.ndarray], right: Network
) -> None:
    """Ten rows prove nothing; nor do labels that are all the same. A shuffled few are chance, and said to be."""
    source, wrong = coloured[0], _fed(0, 1 / 255)(right)
    _build(tmp_path / "a.zarr", take(source, np.arange(10)), wrong)
    _build(tmp_path / "b.zarr", replace(source, labels=source.labels * 0), wrong)
    with pytest.raises(ModelError, match=r"by chance it would be on 1\d\.\d%: no other order .* does much better: are"):
        _build(tmp_path / "c.zarr", _noisy(source, 1), right)


def test_the_accuracy_of_the_card(tmp_path: Path, coloured: tuple[ArraySource, np.ndarray], right: Network) -> None:
    """Far below it is an error; as far as augmentation may go, or images that are mixed, is none."""
    labelled = _noisy(coloured[0], 0.75)  # a third is right
    claimed = replace(right, description=replace(right.description, accuracy=0.95))
    with pytest.raises(ModelError, match=r"right on 3\d\.\d% of 800 augmented views, far below the 95.0% that its"):
        _build(tmp_path / "a.zarr", labelled, claimed)
    modest = replace(right, description=replace(right.description, accuracy=0.5))
    _build(tmp_path / "b.zarr", labelled, modest)
    with pytest.raises(ModelError, match=r"of 800 images to evaluate on, far below the 50.0% that its card"):
        _build_evaluated(tmp_path / "c.zarr", labelled, modest, _noisy(coloured[0], 0.9))
    mixed = tmp_path / "mixed.json"
    mixed.write_text(json.dumps({"steps": [], "mix": {"mixup_alpha": 0.8}}))
    _build(tmp_path / "d.zarr", labelled, claimed, recipe=str(mixed))


def _build_evaluated(out: Path, source: ArraySource, network: Network, eval_source: ArraySource, **given: Any) -> Any:
    from gdkd_cache.building.build import build
    from gdkd_cache.building.options import BuildOptions

    options = BuildOptions(out=out, num_views=1, codec="dense", batch_size=64, num_workers=0, **given)
    return build(options, source, network, eval_source).manifest


def test_images_to_evaluate_on(tmp_path: Path, coloured: tuple[ArraySource, np.ndarray], right: Network) -> None:
    source, other = coloured[0], take(coloured[0], np.arange(0, 800, 2))
    manifest = _build_evaluated(tmp_path / "a.zarr", source, right, other)
    found = manifest.identity.examination
    assert (found.data, found.recipe, found.evaluated.rows) == ("colours", "none", 400)
    predicted = right.logits(torch.from_numpy(other.images)).argmax(-1).numpy()
    assert found.evaluated.top1 == (predicted == other.labels).mean()
    assert _build_evaluated(tmp_path / "b.zarr", source, right, other) == manifest
    with pytest.raises(MismatchError, match="has other classes than colours, or in another order"):
        _build_evaluated(tmp_path / "c.zarr", source, right, replace(other, classes=_NAMES[::-1]))


def test_what_is_dropped(tmp_path: Path, coloured: tuple[ArraySource, np.ndarray], right: Network) -> None:
    class More(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            own = self.model(images)
            return torch.cat([own, own.logsumexp(-1, keepdim=True)], -1)  # as probable as all the others together

    mapped = replace(right, model=ClassLogits(More(right.model), [*range(8), -1]))
    examination = _build(tmp_path / "a.zarr", coloured[0], mapped).identity.examination
    assert examination.dropped == pytest.approx(0.5, abs=1e-4)
    assert examination.views.top1 > 0.9


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network that was trained on the digits for seconds, and its permuted twin beside it."""
    folder = tmp_path_factory.mktemp("trained")
    train = f"train --loss ce --data digits --student cnn-s --epochs 4 --lr 0.2 --out {folder}/run --recipe crop"
    result = CliRunner().invoke(main, train.split())
    assert result.exit_code == 0, result.output
    weights = folder / "run" / "best.safetensors"
    network = open_network("cnn-s", weights, 10, device="cpu")
    state, order = network.model.state_dict(), [7, 2, 9, 4, 0, 1, 3, 8, 6, 5]
    for name in list(state)[-2:]:
        state[name] = state[name][order]
    network.model.load_state_dict(state)
    card = ModelCard(name="cnn-s", num_classes=10, size=(8, 8), mean=network.mean, std=network.std)
    save_weights(network.model, card, folder / "permuted.safetensors")
    (folder / "order").write_text("\n".join(map(str, order)))
    return folder


def test_digits_by_command(tmp_path: Path, trained: Path) -> None:
    """A plan and a build of a trained teacher say how right it is; its permuted twin is refused, and then mapped."""

    def run(command: str, *given: str) -> Any:
        common = f"{command} --data digits --teacher cnn-s --views 1 --recipe crop --device cpu"
        return CliRunner().invoke(main, [*common.split(), *given])

    good, permuted = ["--weights", f"{trained}/run/best.safetensors"], ["--weights", f"{trained}/permuted.safetensors"]
    planned = run("plan", *good, "--eval-data", "digits")
    assert "The teacher: top-1 " in planned.stdout, planned.output
    assert "on 359 images of digits/test (recipe none)" in planned.stdout
    for command in ("plan", "build"):
        refused = run(command, *permuted, *(["--out", f"{tmp_path}/x"] if command == "build" else []))
        assert refused.exit_code == 1
        assert "order of its classes is at fault" in refused.stderr
    for given in (["--normalize", "half"], ["--mean", *"000", "--std", *["0.00392"] * 3]):
        refused = run("build", *good, *given, "--out", f"{tmp_path}/x")
        assert refused.exit_code == 1
        assert "the normalisation of its inputs" in refused.stderr, refused.stderr
    mapped = run("build", *permuted, "--classes", f"{trained}/order", "--codec", "dense", "--out", f"{tmp_path}/a")
    assert mapped.exit_code == 0, mapped.output
    plain = run("build", *good, "--codec", "dense", "--out", f"{tmp_path}/b")
    assert plain.exit_code == 0, plain.output
    a, b = (open_cache(tmp_path / name).manifest.identity for name in "ab")
    assert a.examination == b.examination


def test_pack_examines_what_it_is_given(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(1, 50, 10)).astype(np.float32)
    labels = np.where(np.arange(50) < 20, logits[0].argmax(-1), (logits[0].argmax(-1) + 1) % 10)
    keys = [str(row) for row in range(50)]
    manifest = pack(tmp_path / "a.zarr", logits, keys=keys, labels=labels, codec="dense")
    assert manifest.identity.examination is not None
    assert manifest.identity.examination.views.top1 == 0.4
    guessed = pack(tmp_path / "b.zarr", logits, keys=keys, labels=labels, codec="dense", true_labels=False)
    assert guessed.identity.examination is None


def test_figures() -> None:
    """Beside the definitions, row by row; in any order and any batches to the last bit."""
    rng = np.random.default_rng(0)
    logits, labels = torch.from_numpy(rng.normal(0, 3, (3000, 12))), torch.from_numpy(rng.integers(0, 12, 3000))
    logits[torch.arange(1500), labels[:1500]] += 4
    whole, parts = Tally(), Tally()
    whole.add(logits, labels)
    for rows in torch.from_numpy(rng.permutation(3000)).split(7):
        parts.add(logits[rows], labels[rows])
    shares = logits.softmax(-1)
    confidence, predicted = shares.max(-1)
    hits = (predicted == labels).double()
    error = 0.0
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        error += abs(float((confidence - hits)[inside].sum())) / 3000
    top5 = (logits.topk(5).indices == labels[:, None]).any(-1).double().mean()
    found = whole.examined()
    assert found == parts.examined()
    assert (found.rows, found.top1) == (3000, round(float(hits.mean()), 6))
    assert found.top5 == pytest.approx(float(top5), abs=1e-6)
    assert found.calibration_error == pytest.approx(error, abs=1e-5)
    assert found.entropy == pytest.approx(float(-(shares * shares.log()).sum(-1).mean()), abs=1e-5)


def test_ties_and_extremes() -> None:
    tally = Tally()
    tally.add(torch.tensor([[0.0, 0.0], [0.0, 0.0], [1e30, 0.0]]), torch.tensor([0, 1, 0]))
    assert tally.examined() == Examined(rows=3, top1=0.666667, top5=1.0, calibration_error=0.0, entropy=0.462098)


def test_chance() -> None:
    exact = [math.comb(20, hits) * 0.3**hits * 0.7 ** (20 - hits) for hits in range(21)]
    for hits in (0, 3, 6, 20):
        assert at_least(hits, 20, 0.3) == pytest.approx(sum(exact[hits:]))
        assert at_most(hits, 20, 0.3) == pytest.approx(sum(exact[: hits + 1]))
    assert [at_least(hits, 4, share) for hits, share in ((0, 0.0), (1, 0.0), (4, 1.0))] == [1.0, 0.0, 1.0]
    labels = np.arange(100) % 10
    assert chance(labels, labels) == pytest.approx(0.1)
    assert chance(labels * 0, labels * 0) == 1.0
    assert not much_better(np.zeros(4, bool), np.ones(4, bool))  # which chance may do
    assert much_better(np.zeros(40, bool), np.arange(40) < 20)
    assert not much_better(np.ones(1000, bool), np.ones(1000, bool))


def test_relabelling() -> None:
    rng = np.random.default_rng(0)
    order = rng.permutation(20)
    predicted = rng.integers(0, 19, 2000)  # one output is never seen
    labels = np.where(rng.random(2000) < 0.4, order[predicted], rng.integers(0, 20, 2000))
    found = relabelling(predicted, labels, 20)
    assert (found[:19] == order[:19]).all()
    assert sorted({*found.tolist()} - {20}) == sorted({*found.tolist()} & {*range(20)})
    assert len({*found[:19].tolist()}) == 19
    assert open_source("digits").class_names == (open_source("digits").classes,)
