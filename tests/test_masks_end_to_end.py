"""Images with masks from build to student: cached is live, whole builds are one digest, damage is found."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scenes import CLASSES, Scenes, scenes
from torch import nn

import gdkd_cache as gc
from gdkd_cache.building.build import build
from gdkd_cache.building.options import BuildOptions
from gdkd_cache.building.repair import repair
from gdkd_cache.checking.verify import verify
from gdkd_cache.errors import GdkdCacheError, ModelError
from gdkd_cache.models.network import Network
from gdkd_cache.models.opening import open_network
from gdkd_cache.training.train import TrainOptions, Views, train

LOSS = "gdkd:k=2,w1=1,w2=2,temperature=1"
RECIPE = "scale-crop:height=24,width=32"
SOURCE, HELD_OUT = scenes(24), scenes(8, seed=1)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Network:
    out = tmp_path_factory.mktemp("dense") / "teacher"
    options = TrainOptions(student="seg-s", epochs=12, batch_size=8, lr=0.1, out=out, num_workers=0, threads=1)
    found = train(options, SOURCE, HELD_OUT, views=Views(recipe=RECIPE))
    assert found.last_score > 0.3, found
    return open_network("seg-s", str(out / "last.safetensors"), len(CLASSES))


def built(path: Path, teacher: Network, **options: object) -> gc.Cache:
    given = {"num_views": 3, "recipe": RECIPE, "losses": (LOSS,), "batch_size": 8, "num_workers": 0, **options}
    build(BuildOptions(out=path, **given), SOURCE, teacher)  # pyright: ignore[reportArgumentType]
    return gc.open_cache(path)


def student(path: Path, **options: object) -> TrainOptions:
    given = {
        "student": "seg-s",
        "loss": LOSS,
        "epochs": 10,
        "batch_size": 8,
        "seed": 3,
        "num_workers": 0,
        "threads": 1,
        **options,
    }
    return TrainOptions(out=path, **given)  # pyright: ignore[reportArgumentType]


class _OneByOne(nn.Module):
    """A network shown images one by one: those beside an image move its last bits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        said = [self.model(image[None]) for image in images]
        return {name: torch.cat([one[name] for one in said]) for name in said[0]}


def test_cached_is_live_to_the_bit(tmp_path: Path, teacher: Network) -> None:
    """Thirty steps: of both outputs' logits as they are."""
    teacher = replace(teacher, model=_OneByOne(teacher.model))
    cache = built(tmp_path / "dense.zarr", teacher, codec="dense:dtype=float32")
    assert cache.manifest.identity.cells.outputs == ("main", "aux")
    assert cache.view(0).logits([0, 1]).shape == (2, 2, 3, 4, len(CLASSES))
    train(student(tmp_path / "cached"), SOURCE, HELD_OUT, cache=cache)
    views = Views(recipe=RECIPE, num_views=3)
    train(student(tmp_path / "live"), SOURCE, HELD_OUT, views=views, teacher=teacher)
    cached, live = (load_file(tmp_path / name / "last.safetensors") for name in ("cached", "live"))
    assert cached.keys() == live.keys()
    for name, value in cached.items():
        assert torch.equal(value, live[name]), name


@pytest.mark.parametrize("codec", ["dense", "topk:k=3", "transform", "grid"])
def test_each_codec_gives_one_digest(tmp_path: Path, teacher: Network, codec: str) -> None:
    """With other workers, and interrupted; and its logits train."""
    digests = {
        built(tmp_path / f"{workers}.zarr", teacher, codec=codec, fidelity=0.3, num_workers=workers).digest
        for workers in (0, 2)
    }
    assert len(digests) == 1
    cache = gc.open_cache(tmp_path / "0.zarr")
    (error,) = {round(max(cache.manifest.identity.fidelity.gradient_error.values()), 9)}
    assert error < (0.35 if codec != "topk:k=3" else 1)
    train(student(tmp_path / "s", epochs=2), SOURCE, HELD_OUT, cache=cache)


def test_a_part_of_the_rows_in_another_order(tmp_path: Path, teacher: Network) -> None:
    cache = built(tmp_path / "c.zarr", teacher, codec="dense:dtype=float32")
    data = cache.dataset(SOURCE.take(np.array([3, 7, 11])))
    (images, masks, said) = next(iter(data.loader(1, batch_size=3, normalize=None)))
    assert images.shape == (3, 3, 24, 32)
    assert masks.shape == (3, 24, 32)
    assert masks.dtype == torch.int64
    again = teacher.logits(images)
    torch.testing.assert_close(said.logits, again, atol=1e-4, rtol=1e-4)
    assert torch.equal(said.top[..., 0], said.logits.argmax(-1))


def test_a_teacher_that_knows_nothing_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    train(student(tmp_path / "t", loss="ce", epochs=1, lr=1e-9), SOURCE, HELD_OUT, views=Views(recipe=RECIPE))
    blank = open_network("seg-s", str(tmp_path / "t/last.safetensors"), len(CLASSES))
    with pytest.raises(ModelError, match=r"right on .* of the cells of .* and by chance it would be on"):
        built(tmp_path / "c.zarr", blank)
    assert built(tmp_path / "c.zarr", blank, accept_teacher=True, codec="dense").num_views == 3


def test_verify_runs_the_teacher_again(tmp_path: Path, teacher: Network) -> None:
    cache = built(tmp_path / "c.zarr", teacher, codec="transform", fidelity=0.2)
    found = verify(tmp_path / "c.zarr", deep=True, source=SOURCE, teacher=teacher, num_rows=24)
    assert found.problems == (), found.problems
    stated = cache.manifest.identity.fidelity.gradient_error
    assert found.rerun is not None
    assert found.rerun.gradient_error.keys() == stated.keys()
    assert any("[aux]" in name for name in stated)
    other = replace(teacher, model=_OtherClasses(teacher.model))
    assert verify(tmp_path / "c.zarr", source=SOURCE, teacher=other, num_rows=24).problems


class _OtherClasses(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: output.flip(1) for name, output in self.model(images).items()}


@pytest.mark.parametrize("name", ["labels", "packed", "source_check"])
def test_damage_is_found_and_repaired(tmp_path: Path, teacher: Network, name: str) -> None:
    cache = built(tmp_path / "c.zarr", teacher, codec="transform", fidelity=0.3)
    objects = [one for one in sorted(cache.manifest.objects) if one.startswith(f"{name}/c/")]
    path = tmp_path / "c.zarr" / objects[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert [one for one, problem in gc.open_cache(tmp_path / "c.zarr").problems() if problem] == [objects[0]]
    repair(tmp_path / "c.zarr", source=SOURCE, teacher=teacher, num_workers=0)
    assert path.read_bytes() == whole


def test_a_changed_mask_of_an_unchanged_image_is_found(tmp_path: Path, teacher: Network) -> None:
    cache = built(tmp_path / "c.zarr", teacher, codec="dense")
    changed = Scenes(24)
    image, mask = changed[5]
    changed._rows[5] = (image, np.where(mask == 1, 2, mask).astype(np.int16))
    assert (changed[5][1] != mask).any()
    with pytest.raises(GdkdCacheError, match="scene5"):
        train(student(tmp_path / "s", epochs=1), changed, HELD_OUT, cache=cache)
