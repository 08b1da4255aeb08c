"""Drift is noticed: exact, rounding or different, at the right stage, with no wrong verdict."""

import io
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from small import build_small, forge
from torch import nn
from torchvision.transforms.v2 import functional

import gdkd_cache as gc
from gdkd_cache import losses, open_cache
from gdkd_cache.checking.verify import verify
from gdkd_cache.data.probes import ROUNDING_RMS, difference, probe_pixels, probed
from gdkd_cache.data.recipes.geometry import HorizontalFlip, RandomResizedCrop
from gdkd_cache.data.recipes.mixing import Mix
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.source import EncodedSource, Source
from gdkd_cache.errors import MismatchError, UsageError
from gdkd_cache.models.network import Network
from gdkd_cache.models.weights import load_card
from gdkd_cache.seeding import hash_keys
from gdkd_cache.store.facts import TeacherFacts
from gdkd_cache.training.train import TrainOptions, train

ROWS = 96
_RECIPE = "imagenet:size=32"
CHOICE = {"codec": "dense:dtype=float32", "losses": ("gdkd:k=2",)}


def _jpeg(pixels: np.ndarray, quality: int = 90) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


@pytest.fixture(scope="module")
def tiles() -> list[np.ndarray]:
    """Tiles of scikit-learn's two photographs, of differing sizes."""
    made = []
    for photograph in load_sample_images().images:
        for number in range(ROWS // 2):
            top, left = 60 * (number // 8), 72 * (number % 8)
            made.append(photograph[top : top + 56 + number % 7, left : left + 64])
    return made


def _source(files: list[bytes]) -> EncodedSource:
    keys = [f"tile/{row:03d}" for row in range(len(files))]
    labels = np.arange(len(files)) % 4
    return EncodedSource(name="tiles", files=files, labels=labels, keys=keys, classes=["a", "b", "c", "d"])


@pytest.fixture(scope="module")
def jpegs(tiles: list[np.ndarray]) -> EncodedSource:
    return _source([_jpeg(tile) for tile in tiles])


@pytest.fixture(scope="module")
def linear_teacher() -> Network:
    torch.manual_seed(0)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 4)).eval()
    half = (0.5, 0.5, 0.5)
    about = TeacherFacts(name="linear", weights="sha256:0")
    device = torch.device("cpu")
    return Network(model=model, mean=half, std=half, device=device, precision="float32", description=about)


@pytest.fixture(scope="module")
def jpeg_cache(tmp_path_factory: pytest.TempPathFactory, jpegs: EncodedSource, linear_teacher: Network) -> Path:
    path = tmp_path_factory.mktemp("cache") / "jpegs.zarr"
    build_small(path, jpegs, linear_teacher, **CHOICE, recipe=_RECIPE, num_views=3)
    return path


def _train(out: Path, source: Source, cache: Path, **options: Any) -> None:
    settings = gc.loss("gdkd:k=2")
    fields: dict[str, Any] = {"epochs": 1, "batch_size": 32, "num_workers": 0, "loss": settings} | options
    strict = fields.pop("strict_replay", False)
    train(
        TrainOptions(out=out, student="cnn-s", **fields), source, source, cache=open_cache(cache), strict_replay=strict
    )


def test_a_jpeg_cache_replays(tmp_path: Path, jpegs: EncodedSource, jpeg_cache: Path) -> None:
    result = verify(jpeg_cache, source=jpegs)
    assert not result.problems
    assert result.replay is not None
    assert result.replay.exact == 3 * probed(hash_keys(jpegs.keys)).sum()
    _train(tmp_path / "s", jpegs, jpeg_cache, epochs=2)


def test_views_of_one_decoding_are_the_same_cache(
    tmp_path: Path, jpegs: EncodedSource, jpeg_cache: Path, linear_teacher: Network
) -> None:
    """Rendered by workers, in parts of 64 rows, and resumed from the middle of a group of views: one digest."""
    wanted = open_cache(jpeg_cache).manifest.digest
    built = build_small(
        tmp_path / "c.zarr",
        jpegs,
        linear_teacher,
        **CHOICE,
        recipe=_RECIPE,
        num_views=3,
        num_workers=2,
    )
    assert built.manifest.digest == wanted


def _busiest(jpegs: EncodedSource, tiles: list[np.ndarray]) -> int:
    """The probed row with the most texture."""
    return max(np.flatnonzero(probed(hash_keys(jpegs.keys))).tolist(), key=lambda row: float(tiles[row].std()))


def _altered(row: int, kind: str, jpegs: EncodedSource, tiles: list[np.ndarray]) -> EncodedSource:
    """A source in which one image is another."""
    tile = tiles[row]
    changed = {
        "file": tiles[row - 1],
        "flip": tile[:, ::-1],
        "crop": np.concatenate([tile[1:], tile[-1:]]),
        "quality": tile,
    }[kind]
    files = list(jpegs.files)
    files[row] = _jpeg(np.ascontiguousarray(changed), 30 if kind == "quality" else 90)
    return replace(jpegs, files=files)


@pytest.mark.parametrize("kind", ["file", "flip", "crop", "quality"])
def test_another_file_is_refused_as_such(
    tmp_path: Path, jpegs: EncodedSource, tiles: list[np.ndarray], jpeg_cache: Path, kind: str
) -> None:
    row = _busiest(jpegs, tiles)
    source = _altered(row, kind, jpegs, tiles)
    said = f"the decoded image of '{jpegs.keys[row]}' has different pixels .* its file or its decoder is another"
    with pytest.raises(MismatchError, match=said) as caught:
        _train(tmp_path / "s", source, jpeg_cache)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "s").exists()
    (problem,) = verify(jpeg_cache, source=source).problems
    assert problem == str(caught.value)


def _forgeries() -> Iterator[tuple[str, dict[str, Any]]]:
    crop = RandomResizedCrop(32)
    yield "seed", {"seed": 1}
    yield "recipe", {"recipe": Recipe("x", (crop,)).to_json()}
    yield "scale", {"recipe": Recipe("x", (replace(crop, scale=(0.09, 1.0)), HorizontalFlip())).to_json()}
    yield "flips", {"recipe": Recipe("x", (crop, HorizontalFlip(1.0))).to_json()}


@pytest.mark.parametrize("kind", [kind for kind, _ in _forgeries()])
def test_another_recipe_is_refused_as_such(tmp_path: Path, jpegs: EncodedSource, jpeg_cache: Path, kind: str) -> None:
    """Even in a manifest whose digest was forged to match."""
    forged = Path(shutil.copytree(jpeg_cache, tmp_path / "forged.zarr"))
    forge(forged, lambda stored: stored["identity"]["views"].update(dict(_forgeries())[kind]))
    said = r"view 0 of 'tile/\d+' has different pixels .* recipe .* the decoded image is the same"
    with pytest.raises(MismatchError, match=said):
        _train(tmp_path / "s", jpegs, forged)
    (problem,) = verify(forged, source=jpegs).problems
    assert "the decoded image is the same" in problem


@pytest.mark.parametrize("stage", ["decoder", "resize"])
def test_rounding_is_told_and_refused_when_strict(
    tmp_path: Path, jpegs: EncodedSource, jpeg_cache: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder or a resize that rounds otherwise: reported, and an error with strict_replay."""
    if stage == "decoder":
        decode = EncodedSource.decode

        def rounding(self: EncodedSource, row: int, side: int | None) -> np.ndarray:
            image = decode(self, row, side)
            noise = np.random.default_rng(row).random(image.shape) < 0.1
            return np.clip(image.astype(int) + noise, 0, 255).astype(np.uint8)

        monkeypatch.setattr(EncodedSource, "decode", rounding)
    else:
        resized_crop = functional.resized_crop

        def through_float(image: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            return resized_crop(image.float(), *args, **kwargs).floor().clamp(0, 255).to(torch.uint8)

        monkeypatch.setattr("gdkd_cache.data.recipes.geometry.functional.resized_crop", through_float)
    result = verify(jpeg_cache, source=jpegs)
    assert not result.problems
    assert result.replay is not None
    assert result.replay.rounding > 0
    assert (result.replay.rounding_sources > 0) == (stage == "decoder")
    assert f"the {'image decoder' if stage == 'decoder' else 'resize'} rounds otherwise" in str(result.replay)
    (problem,) = verify(jpeg_cache, source=jpegs, strict=True).problems
    assert "pixels that differ by rounding" in problem
    assert ("decoded image of" in problem) == (stage == "decoder")
    with pytest.raises(MismatchError, match="differ by rounding"):
        _train(tmp_path / "s", jpegs, jpeg_cache, strict_replay=True)


def test_another_size(tmp_path: Path, jpegs: EncodedSource, jpeg_cache: Path) -> None:
    """A student at 20 pixels sees the same boxes as the teacher at 32; the probes are still checked at 32."""
    data = open_cache(jpeg_cache).dataset(jpegs, size=20)
    assert data.size == (20, 20)
    assert data.replay.exact > 0
    small, _, said = next(iter(data.loader(1, batch_size=ROWS, normalize=None)))
    large, _, wanted = next(iter(open_cache(jpeg_cache).dataset(jpegs).loader(1, batch_size=ROWS, normalize=None)))
    assert torch.equal(said.logits, wanted.logits)
    reduced = functional.resize(large, [20, 20], antialias=True)
    assert (reduced.float() - small.float()).abs().mean() < 3
    _train(tmp_path / "s", jpegs, jpeg_cache, size=20)
    card = load_card(tmp_path / "s/best.safetensors")
    assert card is not None
    assert (card.size, card.eval_recipe) == ((20, 20), "imagenet-eval:size=20")


@pytest.fixture(scope="module")
def mixed_cache(tmp_path_factory: pytest.TempPathFactory, jpegs: EncodedSource, linear_teacher: Network) -> Path:
    path = tmp_path_factory.mktemp("cache") / "mixed.zarr"
    recipe = Recipe("mixed", (RandomResizedCrop(32), HorizontalFlip()), Mix(mixup_alpha=0.8, cutmix_alpha=1.0))
    build_small(path, jpegs, linear_teacher, **CHOICE, recipe=recipe, num_views=2)
    return path


def test_mixed_views(tmp_path: Path, jpegs: EncodedSource, mixed_cache: Path, linear_teacher: Network) -> None:
    """The teacher saw the mixed pixels, cross-entropy takes the mixed labels, and a user's loop does not change."""
    data = open_cache(mixed_cache).dataset(jpegs)
    for pixels, labels, teacher in data.loader(1, batch_size=ROWS, shuffle=True, normalize=None):
        assert labels.shape == (ROWS, 4)
        torch.testing.assert_close(labels.sum(1), torch.ones(ROWS))
        assert ((labels > 0).sum(1) == 2).sum() > ROWS // 3
        wanted = linear_teacher.logits(pixels)
        centred = (logits - logits.mean(1, keepdim=True) for logits in (teacher.logits, wanted))
        torch.testing.assert_close(*centred, rtol=1e-5, atol=1e-5)
        student = pixels.float().mean((2, 3)) @ torch.ones(3, 4)
        loss = nn.functional.cross_entropy(student, labels) + losses.gdkd(student, teacher.logits, k=2)
        assert loss.isfinite()
    _train(tmp_path / "s", jpegs, mixed_cache)
    (problem,) = verify(mixed_cache, source=replace(jpegs, labels=(jpegs.labels + 1) % 4)).problems
    assert "label" in problem


def test_mixing_needs_every_image_and_no_single_label(tmp_path: Path, jpegs: EncodedSource, mixed_cache: Path) -> None:
    part = EncodedSource(
        name="part", files=jpegs.files[:-1], labels=jpegs.labels[:-1], keys=jpegs.keys[:-1], classes=jpegs.classes
    )
    with pytest.raises(MismatchError, match=r"95 of the 96 .* a partner may be any of them"):
        open_cache(mixed_cache).dataset(part)
    with pytest.raises(UsageError, match="dkd needs one label an image"):
        _train(tmp_path / "s", jpegs, mixed_cache, loss=gc.loss("dkd"))


# Verdicts


def test_probed_rows() -> None:
    hashes = hash_keys(map(str, range(64_000)))
    assert 800 < probed(hashes).sum() < 1200  # 1 in 64
    for count in (1, 20, 33, 1000):
        assert min(count, 32) <= probed(hashes[:count]).sum() <= 32 + count // 16
    order = np.random.default_rng(0).permutation(1000)
    assert np.array_equal(probed(hashes[:1000][order]), probed(hashes[:1000])[order])


def _pool(size: int, count: int) -> dict[str, np.ndarray]:
    """What the probes of `count` tiles of photographs say of each kind of change: estimated RMS, float64 [count]."""
    rng = np.random.default_rng(size)
    photographs = [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images]
    said: dict[str, list[float]] = {}
    previous = photographs[0][:, :size, :size]
    for _ in range(count):
        photograph = photographs[rng.integers(2)]
        top, left = rng.integers(1, photograph.shape[1] - size), rng.integers(1, photograph.shape[2] - size)
        image = photograph[:, top : top + size, left : left + size]
        noise = torch.from_numpy(rng.random(image.shape) < rng.uniform(0.01, 0.5)).int() * int(rng.choice([-1, 1]))
        changed = {
            "nothing": image.clone(),
            "rounding": (image.int() + noise).clamp(0, 255).to(torch.uint8),
            "row": photograph[:, top - 1 : top - 1 + size, left : left + size],
            "column": photograph[:, top : top + size, left - 1 : left - 1 + size],
            "flip": image.flip(-1),
            "file": previous,
        }
        probe = probe_pixels(image.numpy())
        for kind, pixels in changed.items():
            said.setdefault(kind, []).append(difference(probe, probe_pixels(pixels.numpy())))
        previous = image
    return {kind: np.array(rms) for kind, rms in said.items()}


@pytest.mark.parametrize("size", [32, 96])
def test_no_verdict_is_wrong(size: int) -> None:
    """2000 trials of each kind, on 32 probed images each (the fewest that a cache has): none is wrong.

    A trial is different when one of its images is, as in `check_replay`. Alone, a plain image (sky) can hide a shift
    by a pixel.
    """
    pool = _pool(size, 400)
    rng = np.random.default_rng(0)
    for kind, rms in pool.items():
        worst = rms[rng.integers(0, len(rms), (2000, 32))].max(1)
        wanted = {"nothing": worst == 0, "rounding": (worst > 0) & (worst < ROUNDING_RMS)}
        assert wanted.get(kind, worst >= ROUNDING_RMS).all(), kind
    assert (pool["file"] >= ROUNDING_RMS).mean() > 0.99  # two tiles of the same sky are hardly different files
    assert (pool["rounding"] < ROUNDING_RMS).all()
    assert np.median(pool["rounding"]) < 0.8
