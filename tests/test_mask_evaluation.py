"""Evaluation of masks: its figures are torchmetrics', whatever the sizes, ranks and windows; one score for all."""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from gdkd_cache_cli.main import main
from PIL import Image
from scenes import CLASSES, Scenes
from small import fork
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

import gdkd_cache as gc
from gdkd_cache.data.masks import IGNORE
from gdkd_cache.data.source import Source, settle
from gdkd_cache.errors import ModelError, SourceError
from gdkd_cache.models.build import build_model
from gdkd_cache.models.card import ModelCard
from gdkd_cache.models.network import Network
from gdkd_cache.models.weights import load_card, save_weights
from gdkd_cache.store.facts import TeacherFacts
from gdkd_cache.training.agreement import agree
from gdkd_cache.training.evaluate import Evaluator
from gdkd_cache.training.mask_evaluation import MaskEvaluation, Windows, pixel_logits
from gdkd_cache.training.records.runs import read_run
from gdkd_cache.training.train import Views

_CPU = torch.device("cpu")
_MEAN, _STD = (0.4, 0.4, 0.4), (0.25, 0.25, 0.25)
_IDS = len(CLASSES)


class _Colours(nn.Module):
    """Says of each cell of 4x4 pixels how near its mean colour is to some of its own; one output, no name."""

    def __init__(self, never: int | None = None) -> None:
        super().__init__()
        self.colours = nn.Conv2d(3, _IDS, 1, bias=False)
        with torch.no_grad():
            self.colours.weight.normal_(generator=torch.Generator().manual_seed(0))
        self._never = never

    def forward(self, images: Tensor) -> Tensor:
        logits = self.colours(F.avg_pool2d(images, 4, ceil_mode=True))
        if self._never is not None:
            logits[:, self._never] -= 1e4
        return logits


class _Mixed(Scenes):
    """Scenes of three sizes."""

    def __init__(self, count: int, seed: int = 0) -> None:
        super().__init__(count, seed)
        sizes = ((32, 48), (41, 30), (24, 64))
        self._rows = [Scenes(1, seed + row, sizes[row % 3])[0] for row in range(count)]


def _evaluated(model: nn.Module, source: Source, **options: object) -> MaskEvaluation:
    given = {"mean": _MEAN, "std": _STD, "device": _CPU, **options}
    found = Evaluator(source, **given)(model)  # pyright: ignore[reportArgumentType]
    assert isinstance(found, MaskEvaluation)
    return found


def _normalized(image: np.ndarray) -> Tensor:
    return ((torch.from_numpy(image).movedim(2, 0) / 255 - 0.4) / 0.25)[None].float()


def _pixels(model: nn.Module, source: Scenes) -> tuple[Tensor, Tensor]:
    """Logits and labels of all pixels, one after the other."""
    logits, labels = [], []
    with torch.no_grad():
        for row in range(len(source)):
            image, mask = source[row]
            full = F.interpolate(model(_normalized(image)), mask.shape, mode="bilinear", align_corners=True)
            logits.append(full[0].flatten(1).T)
            labels.append(torch.from_numpy(mask).long().flatten())
    return torch.cat(logits), torch.cat(labels)


@pytest.mark.parametrize("source", [Scenes(6), _Mixed(7)], ids=["one size", "three sizes"])
def test_the_figures_are_torchmetrics(source: Scenes) -> None:
    model = _Colours()
    logits, labels = _pixels(model, source)
    found = _evaluated(model, source)
    oracle = partial(multiclass_jaccard_index, logits, labels, _IDS, ignore_index=IGNORE)
    assert found.mean_iou == pytest.approx(float(oracle(average="macro")), rel=1e-5)
    assert found.class_ious == pytest.approx(oracle(average="none").tolist(), rel=1e-5)
    right = multiclass_accuracy(logits, labels, _IDS, average="micro", ignore_index=IGNORE)
    assert found.pixel_accuracy == pytest.approx(float(right), rel=1e-6)
    assert found.loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
    assert found.class_pixels == tuple(torch.bincount(labels[labels != IGNORE], minlength=_IDS).tolist())
    assert (found.num_rows, found.num_pixels) == (len(source), int((labels != IGNORE).sum()))
    assert len(set(found.class_ious)) == _IDS
    assert found.score == found.mean_iou
    assert {**found.told(), "eval_loss": 0} == {
        "mean_iou": found.mean_iou,
        "pixel_accuracy": found.pixel_accuracy,
        "eval_loss": 0,
    }


def test_the_main_output_is_evaluated() -> None:
    class Two(nn.Module):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            main = _Colours()(images)
            return {"main": main, "aux": -main}

    assert _evaluated(Two(), Scenes(3)) == _evaluated(_Colours(), Scenes(3))


def test_the_network_stays_in_its_mode() -> None:
    model = build_model("seg-s", _IDS).train()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    _evaluated(model, Scenes(2))
    assert model.training
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())


def test_two_ranks_sum_what_one_counts(tmp_path: Path) -> None:
    source = _Mixed(5)

    def run(rank: int) -> None:
        distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=rank, world_size=2)
        found = _evaluated(_Colours(), source)
        distributed.destroy_process_group()
        (tmp_path / str(rank)).write_text(json.dumps(asdict(found)))

    ranks = [fork(partial(run, rank)) for rank in range(2)]
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    first, second = (json.loads((tmp_path / str(rank)).read_text()) for rank in range(2))
    assert first == second
    alone = json.loads(json.dumps(asdict(_evaluated(_Colours(), source))))
    for name, value in alone.items():
        assert first[name] == pytest.approx(value, rel=1e-6), name


def _changed(change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Scenes:
    """Three scenes, whose images and masks something else is made of."""
    source = Scenes(3)
    source._rows = [change(image, mask.copy()) for image, mask in source._rows]
    return source


def test_a_class_that_nobody_is_nor_is_said_to_be_has_no_iou() -> None:
    model = _Colours(never=2)
    absent = _changed(lambda image, mask: (image, np.where(mask == 2, 1, mask).astype(np.int16)))
    found = _evaluated(model, absent)
    assert found.class_ious[2] is None
    known = [iou for iou in found.class_ious if iou is not None]
    assert len(known) == 3
    assert found.mean_iou == pytest.approx(sum(known) / 3)
    missed = _evaluated(model, Scenes(3))  # there, and never said
    assert missed.class_ious[2] == 0


def test_pixels_that_are_ignored_count_nowhere() -> None:
    def hidden(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mask[:, 24:] = IGNORE
        return image, mask

    def cut(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.ascontiguousarray(image[:, :24]), np.ascontiguousarray(mask[:, :24])

    model = nn.Conv2d(3, _IDS, 1)
    found, expected = (asdict(_evaluated(model, _changed(change))) for change in (hidden, cut))
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6), name
    with pytest.raises(SourceError, match="no mask of Scenes has a pixel of a class: all are ignored"):
        _evaluated(model, _changed(lambda image, mask: (image, np.full_like(mask, IGNORE))))


def test_outputs_that_are_not_finite_are_refused() -> None:
    model = _Colours()
    model.colours.weight.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="on Scenes the network's outputs, or their loss, are not finite"):
        _evaluated(model, Scenes(2))


class _Places(nn.Module):
    """Says of each pixel where in the image it is, as a network does whose view is cut at the border."""

    def forward(self, images: Tensor) -> Tensor:
        down, across = (torch.arange(float(length)) for length in images.shape[2:])
        return torch.stack([down[:, None] + 0 * across, across + 0 * down[:, None]])[None]


@pytest.mark.parametrize(
    ("size", "window", "step"),
    [((10, 13), (4, 5), (3, 2)), ((10, 13), (4, 5), (4, 5)), ((7, 5), (4, 9), (1, 3)), ((4, 5), (4, 5), (2, 2))],
)
def test_windows_are_averaged_where_they_overlap(
    size: tuple[int, int], window: tuple[int, int], step: tuple[int, int]
) -> None:
    windows = Windows(height=window[0], width=window[1], down=step[0], across=step[1])
    found = pixel_logits(_Places(), torch.zeros(1, 3, *size), windows)
    expected = np.empty((2, *size))
    for axis, (length, side, by) in enumerate(zip(size, window, step, strict=True)):
        starts = [*range(0, max(length - side, 0), by), max(length - side, 0)]
        for place in range(length):
            inside = [place - start for start in starts if start <= place < start + side]
            assert inside  # every pixel is seen
            expected[axis].swapaxes(0, axis)[place] = np.mean(inside)
    assert np.allclose(found[0].numpy(), expected)


def test_one_window_is_the_whole_image() -> None:
    source, model = _Mixed(3), build_model("seg-s", _IDS)
    windows = Windows(height=64, width=64, down=10, across=10)
    assert _evaluated(model, source, windows=windows) == _evaluated(model, source)
    assert _evaluated(model, source, windows=Windows(height=24, width=24, down=8, across=8)).mean_iou >= 0


# Training, cards and commands


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("masks") / "student"
    options = gc.TrainOptions(student="seg-s", epochs=3, batch_size=8, lr=0.1, ema=0.5, out=out)
    result = gc.train(options, Scenes(16), Scenes(6, seed=1), views=Views(recipe="scale-crop:height=24,width=32"))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    scores = [line["mean_iou"] for line in lines]
    assert (result.score, result.best_score, result.last_score) == ("mean_iou", max(scores), scores[-1])
    assert result.best_epoch == scores.index(max(scores)) + 1
    return out


def test_the_best_epoch_is_that_of_the_highest_mean_iou(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert {"mean_iou", "pixel_accuracy", "eval_loss", "ema_mean_iou"} <= lines[0].keys()
    assert not {"accuracy", "top5_accuracy", "calibration_error"} & lines[0].keys()
    for prefix, suffix in (("", ""), ("ema_", "-ema")):
        scores = [line[f"{prefix}mean_iou"] for line in lines]
        for name, expected in (("best", max(scores)), ("last", scores[-1])):
            card = load_card(trained / f"{name}{suffix}.safetensors")
            assert card is not None
            assert (card.mean_iou, card.accuracy) == (expected, None)
    run = read_run(trained)
    assert (run.score, run.best_score) == ("mean_iou", max(line["mean_iou"] for line in lines))


def test_cards_of_classes_say_nothing_of_masks() -> None:
    card = ModelCard(name="cnn-s", num_classes=2, size=(8, 8), mean=_MEAN, std=_STD, accuracy=0.5)
    assert card.to_json().keys() == {"name", "num_classes", "size", "mean", "std", "accuracy"}
    with pytest.raises(ModelError, match=r"mean_iou is .*; it must be 0 to 1"):
        ModelCard(name="cnn-s", num_classes=2, size=(8, 8), mean=_MEAN, std=_STD, mean_iou=1.5)


def _run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scenes of three sizes, as `segfolder` has them."""
    root, source = tmp_path_factory.mktemp("scenes"), _Mixed(6)
    for kind in ("images", "masks"):
        (root / kind / "val").mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    for row in range(len(source)):
        image, mask = source[row]
        Image.fromarray(image).save(root / f"images/val/{row}.png")
        Image.fromarray(np.where(mask == IGNORE, 255, mask).astype(np.uint8)).save(root / f"masks/val/{row}.png")
    return root


def test_the_command_tells_the_iou_of_each_class(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model("seg-s", _IDS)
    card = ModelCard(name="seg-s", num_classes=_IDS, size=(24, 32), mean=_MEAN, std=_STD)
    save_weights(model, card, tmp_path / "s.safetensors")
    command = ["eval", "--data", f"segfolder:{folder}:test=val", "--weights", tmp_path / "s.safetensors"]
    told = _run(*command, "--json")
    assert told.exit_code == 0, told.output
    facts, found = json.loads(told.stdout), _evaluated(model, _Mixed(6))
    assert [row["iou"] for row in facts["classes"]] == pytest.approx(list(found.class_ious))
    assert [row["name"] for row in facts["classes"]] == list(CLASSES)
    assert sum(row["pixels"] for row in facts["classes"]) == facts["num_pixels"] == found.num_pixels
    assert facts["mean_iou"] == pytest.approx(found.mean_iou)
    table = _run(*command, "--per-class").stdout
    assert f"mean IoU {found.mean_iou:.2%}, pixel accuracy {found.pixel_accuracy:.2%}, NLL" in table
    assert all(name in table for name in (*CLASSES, "IoU", "pixels"))
    windows = json.loads(_run(*command, "--json", "--window", "24x24", "--stride", "8x12").stdout)
    seen = _evaluated(model, _Mixed(6), windows=Windows(height=24, width=24, down=8, across=12))
    assert windows["mean_iou"] == pytest.approx(seen.mean_iou)
    assert windows["loss"] != pytest.approx(facts["loss"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--window", "24"], "window is '24'; it must be a height and a width in pixels, as in 512x1024"),
        (["--window", "0x24"], "window is '0x24'; it must be a height and a width"),
        (["--stride", "8x8"], "--stride is of windows; give --window, too"),
        (["--data", "digits", "--window", "8x8"], "--window is for images with masks, and digits"),
        (["--data", "digits", "--model", "seg-s"], "is dense, with outputs main, aux; this data has no masks"),
    ],
)
def test_what_does_not_go_together_is_refused(folder: Path, tmp_path: Path, options: list[str], message: str) -> None:
    card = ModelCard(name="seg-s", num_classes=10 if "digits" in options else _IDS, size=(8, 8), mean=_MEAN, std=_STD)
    save_weights(build_model("seg-s", card.num_classes), card, tmp_path / "s.safetensors")
    command = ["eval", "--data", f"segfolder:{folder}:test=val", "--weights", tmp_path / "s.safetensors", *options]
    refused = _run(*command)
    assert refused.exit_code in (1, 2)
    assert message in " ".join(refused.output.split())


def test_agreement_is_of_cells(tmp_path: Path) -> None:
    """With oneself as the teacher all cells agree; a student of another grid is resized to the teacher's."""
    facts = TeacherFacts(name="colours", mean=_MEAN, std=_STD)
    model, source = _Colours().eval(), settle(Scenes(4))
    teacher = Network(model=model, mean=_MEAN, std=_STD, device=_CPU, precision="float32", description=facts)
    options = gc.BuildOptions(
        out=tmp_path / "c.zarr",
        num_views=1,
        recipe="none",
        codec="dense:dtype=float32",
        losses=("kd",),
        accept_teacher=True,
    )
    gc.build(options, source, teacher)
    dataset = gc.open_cache(tmp_path / "c.zarr").dataset(source)
    found = agree(model, dataset, mean=_MEAN, std=_STD, device=_CPU, batch_size=3)
    assert (found.agreement, found.num_rows) == (1, 4)
    assert found.divergence == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        said = torch.cat([model(_normalized(image)) for image, _ in Scenes(4)._rows]).movedim(1, -1)
    centres = torch.stack([torch.from_numpy(mask)[2::4, 2::4] for _, mask in Scenes(4)._rows])
    right = said.argmax(-1) == centres
    assert found.accuracy == pytest.approx(float(right[centres != IGNORE].float().mean()))
    other = agree(build_model("seg-s", _IDS), dataset, mean=_MEAN, std=_STD, device=_CPU)
    assert 0 <= other.agreement < 1
    assert other.divergence > 0


def test_trainings_are_compared_by_their_score(trained: Path) -> None:
    told = _run("compare", trained, "--json")
    (row,) = json.loads(told.stdout)["groups"]
    assert row["score"] == "mean_iou"
    assert row["best_mean_iou"]["mean"] == read_run(trained).best_score
    assert f"{row['last_mean_iou']['mean']:.2%}" in _run("compare", trained).stdout
