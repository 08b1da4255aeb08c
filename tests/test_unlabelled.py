"""Rows without a label: sources say so, caches keep it, and whatever needs labels refuses them or leaves them out."""

import io
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import build_small, forge, write_shards

import gdkd_cache as gc
from gdkd_cache.data.recipes.mixing import Mix
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.source import ArraySource, settle
from gdkd_cache.data.subset import labelled
from gdkd_cache.errors import CacheError, GdkdCacheError, MismatchError, NotServedError, SourceError, UsageError
from gdkd_cache.models.network import Network
from gdkd_cache.sharing.convert import to_sidecars
from gdkd_cache.training.agreement import agree
from gdkd_cache.training.evaluate import Evaluator
from gdkd_cache.training.feeds import Views

_CODECS = ("dense", "transform", "topk")


class _Own:
    """A user's own source, of which every other row has no label."""

    classes: Sequence[str] = ("a", "b")
    keys: Sequence[str] = ("0", "1", "2", "3")
    digest = "own"

    def __len__(self) -> int:
        return 4

    def __getitem__(self, row: int) -> tuple[np.ndarray, int | None]:
        return np.zeros((8, 8, 3), np.uint8), None if row % 2 else row // 2


@pytest.fixture(scope="module")
def some(digits: ArraySource) -> ArraySource:
    """Digits of which 100 have labels."""
    hidden = labelled(digits, 100)
    assert isinstance(hidden, ArraySource)
    return hidden


@pytest.mark.parametrize("codec", _CODECS)
def test_caches_keep_it(codec: str, tmp_path: Path, some: ArraySource, digits: ArraySource, teacher: Network) -> None:
    """Built, verified, joined by key with data that says as much, more or less; top classes are as with labels."""
    losses = ("gdkd",) if codec == "topk" else ("kd",)
    build_small(tmp_path / "some", some, teacher, codec=codec, losses=losses)
    cache = gc.open_cache(tmp_path / "some")
    assert cache.manifest.identity.data.unlabelled == 156
    assert (cache.labels == some.labels).all()
    assert not [problem for _, problem in cache.problems() if problem]
    examination = cache.manifest.identity.examination
    assert examination is not None
    assert examination.views.rows == (some.labels >= 0).sum()
    whole = build_small(tmp_path / "all", digits, teacher, codec=codec, losses=losses)
    assert "unlabelled" not in (tmp_path / "all" / "manifest.json").read_text()
    assert whole.manifest.identity.data.unlabelled == 0
    rows = np.arange(256)
    ours, theirs = (one.view(1).topk(rows).classes for one in (cache, gc.open_cache(tmp_path / "all")))
    assert torch.equal(ours, theirs)
    for source in (some, digits, labelled(digits, 10)):
        for images, labels, said in cache.dataset(source).loader(0, batch_size=256):
            assert len(images) == len(said.logits)
            assert (labels.numpy() == source.labels).all()
    wrong = some.labels.copy()
    wrong[np.flatnonzero(wrong >= 0)[0]] += 1
    with pytest.raises(MismatchError, match="1 labels differ"):
        cache.dataset(replace(some, labels=wrong % 10))


def test_packed(tmp_path: Path) -> None:
    """Also of as many classes as a byte has ids for, and without any label at all."""
    rng = np.random.default_rng(0)
    for number, (classes, labels) in enumerate(((255, [3, -1, 254, 0]), (10, [-1, -1, -1, -1]))):
        logits = rng.normal(size=(1, 4, classes)).astype(np.float32)
        path = tmp_path / str(number)
        manifest = gc.pack(path, logits, keys=list("abcd"), labels=labels, losses=("kd",), codec="dense")
        cache = gc.open_cache(path)
        assert cache.labels.tolist() == labels
        assert (manifest.identity.examination is None) == (max(labels) < 0)
        np.testing.assert_allclose(cache.view(0).logits(range(4)), logits[0] - logits[0].mean(-1)[:, None], atol=5e-3)
    with pytest.raises(UsageError, match="labels are from -2"):
        gc.pack(tmp_path / "x", logits, keys=list("abcd"), labels=[-2, 0, 0, 0])
    with pytest.raises(UsageError, match=r"declared loss dkd .* needs a label of each row, and 4 rows have none"):
        gc.pack(tmp_path / "x", logits, keys=list("abcd"), labels=[-1] * 4, losses=("dkd",))


def test_what_needs_labels(tmp_path: Path, some: ArraySource, digits: ArraySource, teacher: Network) -> None:
    build_small(tmp_path / "some", some, teacher, codec="dense", losses=("kd",))
    cache = gc.open_cache(tmp_path / "some")
    with pytest.raises(NotServedError, match="no label of 156 rows; dkd"):
        cache.require(gc.loss("dkd"))
    with pytest.raises(UsageError, match="156 rows have none"):
        build_small(tmp_path / "dkd", some, teacher, losses=("dkd",))
    with pytest.raises(SourceError, match="156 of 256 rows have no label"):
        Evaluator(some, mean=(0.3,) * 3, std=(0.4,) * 3, device=torch.device("cpu"))
    with pytest.raises(UsageError, match="miniplm needs one"):
        gc.select(cache, "miniplm", 10, reference=cache)
    options = gc.TrainOptions(student="cnn-s", epochs=1, loss="kd", out=tmp_path / "out", threads=1)
    mixed = replace(open_recipe("crop-flip", 8, 8), mix=Mix(mixup_alpha=1.0))
    with pytest.raises(UsageError, match="mixes images with their labels, and 156 of 256"):
        gc.train(options, some, digits, views=Views(recipe=mixed), teacher=teacher)
    found = agree(teacher.model, cache.dataset(some), mean=(0.3,) * 3, std=(0.4,) * 3, device=torch.device("cpu"))
    known = cache.dataset(digits.take(np.flatnonzero(some.labels >= 0)))
    wanted = agree(teacher.model, known, mean=(0.3,) * 3, std=(0.4,) * 3, device=torch.device("cpu"))
    assert found.accuracy == pytest.approx(wanted.accuracy)


def test_damaged_counts(tmp_path: Path, some: ArraySource, teacher: Network) -> None:
    """A manifest that states another number of such rows is found out."""
    build_small(tmp_path / "some", some, teacher, codec="dense", losses=("kd",))
    forge(tmp_path / "some", lambda stored: stored["identity"]["data"].update(unlabelled=155))
    with pytest.raises(CacheError, match="156 rows have no label, and the manifest states 155"):
        _ = gc.open_cache(tmp_path / "some").labels


def test_own_sources_and_shards(tmp_path: Path) -> None:
    """None of a user's own source, and -1 in .cls; a sample that lacks its .cls is still an error."""
    assert settle(_Own()).labels.tolist() == [0, -1, 1, -1]
    hidden = labelled(settle(_Own()), "1")
    assert hidden.digest != "own"
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, "png")

    def written(name: str, members: dict[str, bytes]) -> str:
        with tarfile.open(tmp_path / name, "w") as tar:
            for member, data in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return f"wds:{tmp_path / name}"

    members = {"a.png": png.getvalue(), "a.cls": b"1", "b.png": png.getvalue(), "b.cls": b"-1\n"}
    for stream in (False, True):
        assert gc.open_source(written("a.tar", members), stream=stream).labels.tolist() == [1, -1]
    with pytest.raises(SourceError, match=r"-1 for no label"):
        gc.open_source(written("b.tar", members | {"c.png": png.getvalue()}))


def test_refused_as_a_whole() -> None:
    with pytest.raises(GdkdCacheError, match="has label -2"):
        ArraySource(name="x", images=np.zeros((1, 3, 8, 8), np.uint8), labels=np.array([-2]), keys="a", classes="ab")


def test_sidecars(tmp_path: Path, some: ArraySource, teacher: Network) -> None:
    """Beside image shards, a cache has the same labels, and none where none were."""
    write_shards(tmp_path, some, (100, 156))
    shards = gc.open_source(f"wds:{tmp_path}/Train-{{0..1}}.tar", stream=True)
    build_small(tmp_path / "a.zarr", shards, teacher, codec="dense", losses=("kd",))
    to_sidecars(tmp_path / "a.zarr", tmp_path / "beside", shards)
    ours, theirs = gc.open_cache(tmp_path / "beside"), gc.open_cache(tmp_path / "a.zarr")
    assert sorted(ours.labels) == sorted(some.labels)
    assert (ours.labels == theirs.labels).all()
