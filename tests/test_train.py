"""Training from a cache is training with the live teacher; what does not belong together is refused."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from safetensors.torch import load_file
from small import build_small, forge, take
from torch.nn import functional as F

import gdkd_cache as gc
from gdkd_cache import losses, open_cache
from gdkd_cache.cache.dataset import TeacherBatch
from gdkd_cache.checking.verify import verify
from gdkd_cache.data.probes import probed
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import GdkdCacheError, MismatchError, NotServedError, UsageError
from gdkd_cache.losses.registry import LOSSES
from gdkd_cache.models.build import build_model
from gdkd_cache.models.network import Network
from gdkd_cache.models.normalization import IMAGENET
from gdkd_cache.models.opening import open_network
from gdkd_cache.models.weights import load_card
from gdkd_cache.seeding import hash_keys
from gdkd_cache.training.train import TrainOptions, Views, train

_GDKD = gc.loss("gdkd:k=5,w2=2.0,temperature=4.0")


def _options(out: Path, **fields: Any) -> TrainOptions:
    defaults: dict[str, Any] = {"student": "cnn-s", "epochs": 13, "loss": _GDKD, "lr": 0.002}
    return TrainOptions(out=out, **(defaults | fields))


# At its default weights a training of this learning rate comes to nothing.
_TAME = {"dkd": "dkd:beta=2", "gdkd": "gdkd:w2=2", "gdkd3": "gdkd3:w2=2"}


@pytest.mark.parametrize(
    ("loss", "codec", "tolerance"),
    [("gdkd:w2=2", "dense", 1e-3)] + [(_TAME.get(loss, loss), "dense:dtype=float32", 0.0) for loss in LOSSES],
)
def test_the_cache_is_the_live_teacher(
    tmp_path: Path,
    digits: ArraySource,
    digits_test: ArraySource,
    teacher: Network,
    loss: str,
    codec: str,
    tolerance: float,
) -> None:
    """20 steps of the real trainer on either side, with every loss, same initial weights and order: the same weights.

    Batches are as large as the build's, because a teacher's logits move by 1e-6 with the batch size.
    """
    build_small(tmp_path / "c.zarr", digits, teacher, codec=codec, num_views=3)
    cached, live = (_options(tmp_path / name, loss=loss, epochs=5) for name in ("a", "b"))
    train(cached, digits, digits_test, cache=open_cache(tmp_path / "c.zarr"))
    train(live, digits, digits_test, views=Views(num_views=3), teacher=teacher.logits)
    ours, theirs = load_file(tmp_path / "a/last.safetensors"), load_file(tmp_path / "b/last.safetensors")
    if not tolerance:
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    vectors = [torch.cat([weights[name].float().flatten() for name in sorted(theirs)]) for weights in (ours, theirs)]
    assert (vectors[0] - vectors[1]).norm() <= tolerance * vectors[1].norm()
    torch.testing.assert_close(*vectors, rtol=tolerance, atol=2 * tolerance)


def test_what_a_training_writes(tmp_path: Path, digits: ArraySource, digits_test: ArraySource) -> None:
    options = _options(tmp_path / "s", epochs=3, loss="ce", schedule="multistep:at=2", lr=0.1)
    result = train(options, digits, digits_test)
    lines = [json.loads(line) for line in (tmp_path / "s/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert [line["lr"] for line in lines] == pytest.approx([0.1, 0.1, 0.01])
    accuracies = [line["accuracy"] for line in lines]
    assert result.best_accuracy == max(accuracies)
    assert result.best_epoch == accuracies.index(max(accuracies)) + 1
    best, last = (load_card(tmp_path / f"s/{name}.safetensors") for name in ("best", "last"))
    assert best is not None
    assert last is not None
    assert (best.accuracy, last.accuracy) == (max(accuracies), accuracies[-1])
    assert (best.name, best.num_classes, best.size, best.mean) == ("cnn-s", 10, (8, 8), digits.mean)
    before = (tmp_path / "s/metrics.jsonl").read_bytes()
    assert train(options, digits, digits_test) == result  # it is done
    with pytest.raises(MismatchError, match=r"other settings: option lr is 0\.1 there and 0\.2 now"):
        train(replace(options, lr=0.2), digits, digits_test)
    (tmp_path / "s/state.safetensors").unlink()  # as earlier versions left it
    with pytest.raises(MismatchError, match="holds an earlier training"):
        train(options, digits, digits_test)
    assert (tmp_path / "s/metrics.jsonl").read_bytes() == before
    train(_options(tmp_path / "s", epochs=1, loss="ce", force=True), digits, digits_test)
    assert len((tmp_path / "s/metrics.jsonl").read_text().splitlines()) == 1


def test_distillation_ramps_up(
    tmp_path: Path, digits: ArraySource, digits_test: ArraySource, digits_cache: Path
) -> None:
    """The total is CE plus min(epoch / warmup, 1) times the distillation loss, epochs from 1."""
    options = _options(tmp_path / "s", epochs=3, warmup=2, ce_weight=0.5, distillation_weight=2.0, lr_warmup=1, lr=0.01)
    train(options, digits, digits_test, cache=open_cache(digits_cache))
    lines = [json.loads(line) for line in (tmp_path / "s/metrics.jsonl").read_text().splitlines()]
    for line, ramp in zip(lines, (0.5, 1.0, 1.0), strict=True):
        assert line["loss"] == pytest.approx(0.5 * line["ce"] + 2.0 * ramp * line["distillation"], rel=1e-4)
    assert lines[0]["lr"] < 0.01


def test_a_users_own_loop(digits: ArraySource, digits_cache: Path) -> None:
    """The loop of the README, as written there."""
    cache = gc.open_cache(digits_cache)
    my_source = digits
    student = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01)
    epochs, first, loss = 6, None, torch.zeros(())
    data = cache.dataset(my_source)  # checks keys and labels against the manifest; replays the same views
    for epoch in range(epochs):
        for images, labels, teacher in data.loader(epoch, batch_size=256, shuffle=True):
            loss = F.cross_entropy(out := student(images), labels) + losses.gdkd(out, teacher.logits, top=teacher.top)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            first = loss.item() if first is None else first
    assert first is not None
    assert loss.item() < 0.9 * first


def test_the_public_names(digits: ArraySource, digits_cache: Path) -> None:
    cache = gc.open_cache(str(digits_cache))
    assert (cache.num_views, cache.num_rows, cache.num_classes, cache.keys) == (2, 256, 10, digits.keys)
    view = cache.view(1)
    logits, top = view.logits([3, 1], device="cpu"), view.topk([3, 1])
    assert (logits.dtype, logits.shape) == (torch.float32, (2, 10))
    assert (top.values.shape, top.classes.dtype) == ((2, 8), torch.int64)
    assert torch.equal(view.logits(torch.tensor([1])), logits[1:])
    with pytest.raises(UsageError, match="views 0 to 1"):
        cache.view(2)
    for rows in ([256], [-1], np.array([[1]])):
        with pytest.raises(UsageError, match="rows must be"):
            view.logits(rows)
    images, labels, teacher = next(iter(cache.dataset(digits).loader(0, batch_size=4, normalize=None)))
    assert (images.dtype, images.shape, labels.dtype) == (torch.uint8, (4, 3, 8, 8), torch.int64)
    assert (teacher.rows.tolist(), teacher.view, teacher.top.shape) == ([0, 1, 2, 3], 0, (4, 8))
    normalised, _, _ = next(iter(cache.dataset(digits).loader(0, batch_size=4)))
    torch.testing.assert_close(normalised, (images / 255 - digits.mean[0]) / digits.std[0])


def _epoch(source: ArraySource, path: Path) -> dict[str, tuple[torch.Tensor, int, torch.Tensor, torch.Tensor]]:
    seen, cache = {}, open_cache(path)
    data = cache.dataset(source)
    for images, labels, teacher in data.loader(1, batch_size=50, shuffle=True, normalize=None):
        for i, row in enumerate(teacher.rows.tolist()):
            assert teacher.view == 1
            seen[cache.keys[row]] = (images[i], int(labels[i]), teacher.logits[i], teacher.top[i])
    return seen


def test_rows_are_found_by_key(digits: ArraySource, digits_cache: Path) -> None:
    """Another order and a subset get the same pixels, labels and logits."""
    whole = _epoch(digits, digits_cache)
    assert set(whole) == set(digits.keys)
    for rows in (np.random.default_rng(0).permutation(256), np.arange(100, 180), np.array([7])):
        part = _epoch(take(digits, rows), digits_cache)
        assert set(part) == {digits.keys[row] for row in rows.tolist()}
        for key, (image, label, logits, top) in part.items():
            assert torch.equal(image, whole[key][0])
            assert label == whole[key][1]
            assert torch.equal(logits, whole[key][2])
            assert torch.equal(top, whole[key][3])


def _probed_row(source: ArraySource) -> int:
    return int(np.flatnonzero(probed(hash_keys(source.keys)))[0])


def _wrong_sources(digits: ArraySource) -> Iterator[tuple[str, ArraySource, str]]:
    row = _probed_row(digits)
    images = digits.images.copy()
    images[row, :, 3, 3] ^= 255
    yield "pixel", replace(digits, images=images), f"the decoded image of {digits.keys[row]!r} has different pixels"
    yield "flip", replace(digits, images=digits.images[..., ::-1].copy()), "different pixels than the teacher saw"
    yield (
        "key",
        replace(digits, keys=["new", *digits.keys[1:]]),
        r"key 'new' .* is not in .* \(1 of 256 are not\); use data that the cache was",
    )
    labels = digits.labels.copy()
    labels[9] = (labels[9] + 1) % 10
    yield (
        "label",
        replace(digits, labels=labels),
        rf"key {digits.keys[9]!r} has label {labels[9]} \('{labels[9]}'\) in source",
    )
    yield "classes", replace(digits, classes=[*digits.classes, "ten"]), "10 classes, source digits/train has 11"


@pytest.mark.parametrize("kind", ["pixel", "flip", "key", "label", "classes"])
def test_wrong_data_is_refused(
    tmp_path: Path, digits: ArraySource, digits_test: ArraySource, digits_cache: Path, kind: str
) -> None:
    """In one line, by `train` and by `verify`, before anything is written."""
    source, said = next((source, said) for name, source, said in _wrong_sources(digits) if name == kind)
    test = replace(digits_test, classes=source.classes)
    with pytest.raises(MismatchError, match=said) as caught:
        train(_options(tmp_path / "s"), source, test, cache=open_cache(digits_cache))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "s").exists()
    (problem,) = verify(digits_cache, source=source).problems
    assert "\n" not in problem


@pytest.mark.parametrize("change", ["seed", "recipe"])
def test_another_recipe_or_seed_is_refused(
    tmp_path: Path, digits: ArraySource, digits_test: ArraySource, digits_cache: Path, change: str
) -> None:
    """Even in a manifest whose digest was forged to match: the probes know what the teacher saw."""
    forged = Path(shutil.copytree(digits_cache, tmp_path / "forged.zarr"))

    def edit(stored: dict[str, Any]) -> None:
        views = stored["identity"]["views"]
        views.update({"seed": 1} if change == "seed" else {"recipe": Recipe("none").to_json()})

    forge(forged, edit)
    with pytest.raises(MismatchError, match="different pixels than the teacher saw"):
        train(_options(tmp_path / "s"), digits, digits_test, cache=open_cache(forged))
    assert not (tmp_path / "s").exists()


def test_verify_replays_every_view(digits: ArraySource, digits_cache: Path) -> None:
    result = verify(digits_cache, source=digits)
    assert not result.problems
    assert result.replay is not None
    assert result.replay.exact >= 2
    assert result.replay.rounding == 0


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [({"loss": gc.loss("gdkd:k=9")}, NotServedError, "k=9 needs more exact classes"),
     ({"loss": "ce"}, UsageError, "cross-entropy takes none")],
)  # fmt: skip
def test_losses_that_cannot_be_served(
    tmp_path: Path, digits: ArraySource, digits_test: ArraySource, digits_cache: Path, fields: dict[str, Any],
    error: type[GdkdCacheError], said: str,
) -> None:  # fmt: skip
    with pytest.raises(error, match=said):
        train(_options(tmp_path / "s", **fields), digits, digits_test, cache=open_cache(digits_cache))
    assert not (tmp_path / "s").exists()


def test_a_damaged_view_never_reaches_the_loss(
    tmp_path: Path, digits: ArraySource, digits_test: ArraySource, digits_cache: Path
) -> None:
    damaged = Path(shutil.copytree(digits_cache, tmp_path / "c.zarr"))
    path = damaged / "logits/c/1/0/0"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(GdkdCacheError, match=r"logits/c/1/0/0: its checksum is not the manifest's"):
        train(_options(tmp_path / "s", epochs=2), digits, digits_test, cache=open_cache(damaged))
    assert len((tmp_path / "s/metrics.jsonl").read_text().splitlines()) == 1  # view 0 was whole


_NO_TEACHER = """
import sys
from gdkd_cache_cli.main import main
main(["train", "--loss", "gdkd", "--data", "digits", "--cache", {cache!r}, "--student", "cnn-s", "--epochs", "1",
      "--out", {out!r}], standalone_mode=False)
print(sorted(name for name in sys.modules if name.startswith("gdkd_cache.") or name == "own_teacher"))
"""


def test_training_from_a_cache_loads_no_teacher(tmp_path: Path, digits: ArraySource) -> None:
    """A cache of a user's own teacher; its code and weights are gone when the student trains."""
    code = (
        "from torch import nn\ndef net(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))\n"
    )
    (tmp_path / "own_teacher.py").write_text(code)
    sys.path.insert(0, str(tmp_path))
    try:
        torch.save(build_model("own_teacher:net", 10).state_dict(), tmp_path / "teacher.pth")
        source = gc.open_source("digits")
        teacher = open_network(
            "own_teacher:net", tmp_path / "teacher.pth", len(source.classes), normalization=IMAGENET, device="cpu"
        )
        build_small(tmp_path / "c.zarr", source, teacher, num_views=1)
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("own_teacher", None)
    (tmp_path / "own_teacher.py").unlink()
    (tmp_path / "teacher.pth").unlink()
    script = _NO_TEACHER.format(cache=str(tmp_path / "c.zarr"), out=str(tmp_path / "s"))
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = run.stdout.splitlines()[-1]
    assert "gdkd_cache.training.train" in loaded
    for module in (
        "gdkd_cache.models.network",
        "gdkd_cache.models.opening",
        "gdkd_cache.building.build",
        "own_teacher",
    ):
        assert f"'{module}'" not in loaded
    assert (tmp_path / "s/best.safetensors").exists()


def test_other_libraries_take_a_teacher_batch(digits: ArraySource, digits_cache: Path) -> None:
    """Lightning moves a batch with `apply_to_collection`; torch pins, collates and pickles it."""
    batch = next(iter(open_cache(digits_cache).dataset(digits).loader(0, batch_size=8)))
    moved = apply_to_collection(batch, torch.Tensor, lambda tensor: tensor.to("meta"))
    collated = torch.utils.data.default_collate([batch, batch])
    for images, labels, teacher in (moved, pickle.loads(pickle.dumps(batch)), collated):
        assert type(teacher) is TeacherBatch
        assert images.shape[-1] == 8
        assert teacher.logits.shape[-2:] == (8, 10)
        assert teacher.top.shape[:-1] == teacher.rows.shape == labels.shape
    assert moved[2].logits.device.type == moved[0].device.type == "meta"
    assert collated[2].view.tolist() == [0, 0]


def test_a_student_computes_in_the_fastest_memory_format(
    tmp_path: Path, digits: ArraySource, digits_test: ArraySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch of 32 pixels or more; not in evaluation."""
    seen: set[tuple[bool, bool]] = set()

    def watched(name: str, num_classes: int) -> torch.nn.Module:
        model = build_model(name, num_classes)
        model.register_forward_pre_hook(lambda net, given: seen.add((net.training, given[0].is_contiguous())))
        return model

    def larger(source: ArraySource) -> ArraySource:
        return replace(source, images=source.images[:64].repeat(4, -2).repeat(4, -1), labels=source.labels[:64],
                       keys=source.keys[:64])  # fmt: skip

    monkeypatch.setattr("gdkd_cache.training.train.build_model", watched)
    train(_options(tmp_path / "a", epochs=1, loss="ce"), larger(digits), larger(digits_test))
    assert (True, False) in seen
    assert (True, True) not in seen
    weights = load_file(tmp_path / "a/last.safetensors")
    assert all(weights[name].shape == value.shape for name, value in build_model("cnn-s", 10).state_dict().items())
