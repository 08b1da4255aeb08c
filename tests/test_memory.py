"""Images that are decoded once into memory: the same source, pixels and caches, and the batched path."""

import logging
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small import build_small

from gdkd_cache import TrainOptions, open_cache, open_source, train
from gdkd_cache.data.images import free
from gdkd_cache.data.images.memory import in_memory
from gdkd_cache.data.loader import default_num_workers
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.source import ArraySource, FullSource, settle
from gdkd_cache.data.views import ViewRenderer, ViewRequest
from gdkd_cache.errors import MismatchError, SourceError
from gdkd_cache.models.network import Network

_CROP_FLIP = open_recipe("crop-flip", 8, 8)


def _write(root: Path, digits: ArraySource, *, kind: str = "png") -> str:
    """Digits as an image folder."""
    for row in range(len(digits)):
        image, label = digits[row]
        folder = root / ("train" if row % 4 else "val") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{row:03d}.{kind}")
    return f"imagefolder:{root}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digits: ArraySource) -> Path:
    root = tmp_path_factory.mktemp("images")
    _write(root, digits)
    return root


class Own:
    """A user's own source, with no more than it must have."""

    def __init__(self, source: FullSource) -> None:
        self.keys, self.classes, self.digest, self._source = source.keys, source.classes, "sha256:own", source

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        return self._source[row]


@pytest.mark.parametrize("kind", ["files", "own", "own in processes"])
def test_the_same_source_in_memory(folder: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    given = open_source(f"imagefolder:{folder}")
    if kind != "files":
        given = settle(Own(given))
    held = in_memory(given, _CROP_FLIP, num_workers=2 if kind == "own in processes" else 0)
    assert held.images is not None
    assert held.images.shape == (len(given), 3, 8, 8)
    for row in range(len(given)):
        assert np.array_equal(held[row][0], given[row][0])
        assert held[row][1] == given[row][1]
    for name in ("name", "digest", "keys", "classes", "mean", "std", "scales"):
        assert getattr(held, name) == getattr(given, name)
    assert np.array_equal(held.labels, given.labels)
    assert default_num_workers(held) == 0
    assert f"images: {len(given)} of 8x8 decoded into memory, 0.0369 MB" in caplog.text
    assert in_memory(held, _CROP_FLIP) is held
    assert pickle.loads(pickle.dumps(held)).images is None  # other processes decode for themselves


def test_the_same_views(folder: Path) -> None:
    given, rows = open_source(f"imagefolder:{folder}"), np.arange(50)
    held = in_memory(given, _CROP_FLIP)
    for recipe in (_CROP_FLIP, replace(open_recipe("imagenet:size=6", 8, 8), decode_side=4)):
        both = [ViewRenderer(source, recipe, 3)[ViewRequest((1,), rows)][0].pixels for source in (given, held)]
        assert both[0].equal(both[1])
    renderer = ViewRenderer(held, _CROP_FLIP, 3)
    assert renderer.in_memory
    assert not pickle.loads(pickle.dumps(renderer)).in_memory


def test_what_is_not_taken(folder: Path, tmp_path: Path, images: Path, digits: ArraySource, monkeypatch: Any) -> None:
    given = open_source(f"imagefolder:{folder}")
    size = len(given) * 3 * 64
    assert in_memory(given, _CROP_FLIP, 0) is given
    assert in_memory(given, _CROP_FLIP, size - 1) is given
    assert in_memory(given, _CROP_FLIP, size) is not given
    assert in_memory(given, replace(_CROP_FLIP, decode_side=4)) is given
    for bytes_free, taken in ((4 * size, True), (4 * size - 4, False)):
        monkeypatch.setattr("gdkd_cache.data.images.memory.free_memory", lambda free=bytes_free: free)
        assert (in_memory(given, _CROP_FLIP) is not given) == taken
    large = open_recipe("imagenet", 8, 8)
    monkeypatch.setattr("gdkd_cache.data.images.memory.free_memory", lambda: 8 * size)
    assert in_memory(given, large) is not given
    monkeypatch.setattr("gdkd_cache.data.images.memory._SMALL", 63)
    assert in_memory(given, _CROP_FLIP) is not given
    assert in_memory(given, large) is given
    assert in_memory(given, large, size) is not given
    shards = open_source(f"wds:{images}/Train-*.tar", stream=True)
    assert in_memory(shards, _CROP_FLIP) is shards


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("row", [0, 33])  # seen in the sample, and only later
def test_images_of_several_sizes(
    tmp_path: Path, digits: ArraySource, own: bool, row: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    source = open_source(_write(tmp_path, digits))
    Image.new("RGB", (9, 8)).save(tmp_path / source.keys[row])
    given = settle(Own(source)) if own else source
    assert in_memory(given, _CROP_FLIP) is given
    said = f"image '{source.keys[row]}' is 8x9, others 8x8: they are decoded whenever they are read"
    assert (said in caplog.text) == (row == 33)


def test_a_damaged_image_is_named(tmp_path: Path, digits: ArraySource) -> None:
    source = open_source(_write(tmp_path, digits))
    (tmp_path / source.keys[33]).write_bytes(b"no image")
    with pytest.raises(SourceError, match=f"image '{source.keys[33]}' cannot be decoded"):
        in_memory(source, _CROP_FLIP)


def test_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's limit counts, and ranks share."""
    assert 2**24 < free.free_memory() < 2**50
    limit, used = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(free, "_CGROUPS", ((str(limit), str(used)),))
    for text, wanted in (("3000000\n", 2_000_000), ("1", 0)):
        limit.write_text(text)
        used.write_text("1000000\n")
        assert free.free_memory() == wanted
    monkeypatch.setattr("gdkd_cache.data.images.free.this_rank", lambda: type("Rank", (), {"local_world_size": 4}))
    limit.write_text("3000000")
    assert free.free_memory() == 500_000
    limit.write_text("max")
    assert free.free_memory() > 2**22


def test_builds_and_trainings_take_them(
    tmp_path: Path, folder: Path, teacher: Network, caplog: pytest.LogCaptureFixture
) -> None:
    """The same cache and weights with and without; every image is still compared with the teacher's."""
    caplog.set_level(logging.INFO)
    source, other = open_source(f"imagefolder:{folder}"), open_source(f"imagefolder:{folder}", split="test")
    digests, weights = [], []
    for budget in (None, 0):
        caplog.clear()
        out = tmp_path / str(budget)
        digests.append(build_small(out / "a.zarr", source, teacher, images_in_memory=budget).manifest.digest)
        assert caplog.text.count("decoded into memory") == (budget is None)
        options = TrainOptions(
            out=out, student="cnn-s", epochs=1, loss="gdkd", num_workers=0, images_in_memory=budget, batch_size=32
        )
        train(options, source, other, cache=open_cache(out / "a.zarr"))
        assert caplog.text.count("decoded into memory") == (3 if budget is None else 0)
        said = "images are the teacher's" if budget is None else "is compared when it is decoded"
        assert said in caplog.text
        weights.append((out / "last.safetensors").read_bytes())
    assert digests[0] == digests[1]
    assert weights[0] == weights[1]


def test_a_replaced_image_is_found(tmp_path: Path, digits: ArraySource, teacher: Network) -> None:
    source = open_source(_write(tmp_path / "images", digits))
    build_small(tmp_path / "a.zarr", source, teacher)
    image = tmp_path / "images" / source.keys[77]
    Image.fromarray(255 - np.asarray(Image.open(image))).save(image)
    with pytest.raises(MismatchError, match=f"the decoded image of '{source.keys[77]}' has different pixels"):
        open_cache(tmp_path / "a.zarr").dataset(source)
