"""Every image is checked: one that is not the teacher's takes part in no step, whether a probe covers it or not."""

import io
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from gdkd_cache_cli.main import main
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from sklearn.datasets import load_sample_images
from small import build_small, counting, take, without_checks, write_shards

from gdkd_cache import ensemble, open_cache, open_source
from gdkd_cache.building.repair import repair
from gdkd_cache.checking.verify import verify
from gdkd_cache.data.checks import CHECK_RMS
from gdkd_cache.data.checks import check_images as checks_of
from gdkd_cache.data.probes import difference, probed
from gdkd_cache.data.recipes.mixing import Mix
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.source import ArraySource, EncodedSource, FullSource, settle
from gdkd_cache.errors import CacheError, MismatchError, UsageError
from gdkd_cache.models.network import Network
from gdkd_cache.seeding import hash_keys
from gdkd_cache.sharing.convert import from_sidecars, to_sidecars
from gdkd_cache.sharing.copy import copy
from gdkd_cache.sharing.merge import merge
from gdkd_cache.training.train import TrainOptions, train

ROWS = 400
_OPTIONS: dict[str, Any] = {"shard_rows": 150, "codec": "dense"}
_GOLDEN = Path(__file__).parent / "golden" / "digits.zarr"


# The check itself


def check_images(images: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Of images without masks."""
    return checks_of(((image, None) for image in images), count)


_IMAGES = arrays(np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24), st.just(3)))


@given(_IMAGES, st.data())
def test_another_image_has_another_check(image: np.ndarray, data: st.DataObject) -> None:
    """One value changed, or the same values in another shape."""
    other = image.copy()
    at = tuple(data.draw(st.integers(0, extent - 1)) for extent in image.shape)
    other[at] ^= data.draw(st.integers(1, 255))
    images = [image, other] + ([image.reshape(image.shape[1], -1, 3)] if image.shape[0] != image.shape[1] else [])
    hashes = check_images(images, len(images))[:, :4]
    assert len(np.unique(hashes, axis=0)) == len(images)


@settings(deadline=None)
@given(st.lists(_IMAGES, min_size=1, max_size=5))
def test_a_check_is_of_its_image_alone(images: list[np.ndarray]) -> None:
    together = check_images(images, len(images))
    assert np.array_equal(together, np.concatenate([check_images([image], 1) for image in images]))


@pytest.mark.parametrize("size", [8, 32, 96])
def test_no_verdict_is_wrong(size: int) -> None:
    """Rounding is never taken for another image, and another image for rounding about once in 10,000 times."""
    rng = np.random.default_rng(size)
    photographs = load_sample_images().images
    images = []
    for _ in range(4000):
        top, left = rng.integers(0, 427 - size), rng.integers(0, 640 - size)
        images.append(photographs[rng.integers(2)][top : top + size, left : left + size].copy())
    checks = check_images(images, len(images))
    rounded = [np.clip(np.rint(image + rng.normal(0, rng.uniform(0.2, 1.8), image.shape)), 0, 255) for image in images]
    found = check_images([image.astype(np.uint8) for image in rounded], len(images))
    assert max(map(difference, checks, found)) < CHECK_RMS
    far = [np.mean((a.astype(float) - b) ** 2) >= 30**2 for a, b in pairwise(images)]
    told = np.array([difference(a, b) for a, b in pairwise(checks)])[far]
    assert (told >= CHECK_RMS).mean() > 0.999


# The attack


@pytest.fixture(scope="module")
def source(digits: ArraySource) -> ArraySource:
    whole = open_source("digits")
    assert isinstance(whole, ArraySource)
    return take(whole, np.arange(ROWS))


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def _as_files(source: ArraySource, tmp_path: Path) -> FullSource:
    files = [_png(source[row][0]) for row in range(len(source))]
    return EncodedSource(name=source.name, files=files, labels=source.labels, keys=source.keys, classes=source.classes)


def _as_shards(source: ArraySource, tmp_path: Path) -> FullSource:
    folder = tmp_path / "shards"
    folder.mkdir(exist_ok=True)
    write_shards(folder, source, (100, 90, 110, 100))
    return open_source(f"wds:{folder}/Train-*.tar", stream=True)


class _Own:
    """A user's own source, with no more than it must have."""

    def __init__(self, source: ArraySource) -> None:
        self.keys, self.classes, self.digest, self._source = source.keys, source.classes, source.digest, source

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        return self._source[row]


_KINDS: dict[str, Callable[[ArraySource, Path], FullSource]] = {
    "memory": lambda source, _: source,
    "files": _as_files,
    "shards": _as_shards,
    "own": lambda source, _: settle(_Own(source)),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, source: ArraySource, teacher: Network) -> Path:
    path = tmp_path_factory.mktemp("checks") / "a.zarr"
    build_small(path, source, teacher, **_OPTIONS)
    return path


def _checks(path: Path) -> np.ndarray:
    checks = open_cache(path).source_checks()
    assert checks is not None
    return checks


def _replaced(source: ArraySource, count: int) -> tuple[ArraySource, set[str]]:
    """The source with so many unprobed images replaced by others of it, and their keys."""
    rows = np.flatnonzero(~probed(hash_keys(source.keys)))
    rows = rows[len(rows) // 2 :][:count] if count < len(rows) else rows
    images = source.images.copy()
    images[rows] = 255 - source.images[rows]
    return replace(source, images=images), {source.keys[row] for row in rows.tolist()}


def _train(out: Path, source: FullSource, cache: Path, **options: Any) -> None:
    fields = TrainOptions(out=out, student="cnn-s", epochs=1, batch_size=50, loss="gdkd", num_workers=0)
    train(fields, source, source, cache=open_cache(cache), **options)


@pytest.mark.parametrize("count", [1, ROWS])
@pytest.mark.parametrize("kind", _KINDS)
def test_replaced_images_are_refused(tmp_path: Path, source: ArraySource, cache: Path, kind: str, count: int) -> None:
    """All or one of those that no probe covers: by training, strict or not, and by verification, with a key."""
    bad, keys = _replaced(source, count)
    assert count == 1 or len(keys) > 300
    shown = _KINDS[kind](bad, tmp_path)
    for strict in (False, True):
        with pytest.raises(MismatchError, match=r"the decoded image of '.*' has different pixels") as caught:
            _train(tmp_path / str(strict), shown, cache, strict_replay=strict)
        assert str(caught.value).split("'")[1] in keys
        assert "use the images and the settings that the cache was built with" in str(caught.value)
        assert not list(tmp_path.glob("*/*.safetensors"))
        (problem,) = verify(cache, source=shown, strict=strict).problems
        assert problem.split("'")[1] in keys
        assert "\n" not in problem


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", ["files", "shards"])
def test_no_batch_with_a_replaced_image_is_given_out(
    tmp_path: Path, source: ArraySource, cache: Path, kind: str, num_workers: int
) -> None:
    """Nor any after it; those before are as they should be."""
    bad, keys = _replaced(source, 1)
    opened = open_cache(cache)
    data = opened.dataset(_KINDS[kind](bad, tmp_path), images_in_memory=0)
    seen: list[str] = []

    def see_all() -> None:
        for _, _, said in data.loader(1, batch_size=20, shuffle=True, num_workers=num_workers):
            seen.extend(opened.keys[row] for row in said.rows.tolist())

    with pytest.raises(MismatchError, match=f"the decoded image of '{min(keys)}'"):
        see_all()
    assert len(seen) < ROWS
    assert not keys & set(seen)


@pytest.mark.parametrize("budget", [None, 0])
@pytest.mark.parametrize("kind", _KINDS)
def test_the_right_images_in_another_order(
    tmp_path: Path, source: ArraySource, cache: Path, kind: str, budget: int | None
) -> None:
    """A part of them, in any order, decoded or in memory: each is compared with its own check."""
    rows = np.random.default_rng(0).permutation(ROWS)[:300]
    shown = _KINDS[kind](take(source, rows) if kind != "shards" else source, tmp_path)
    data = open_cache(cache).dataset(shown, strict_replay=True, images_in_memory=budget)
    assert sum(len(labels) for _, labels, _ in data.loader(0, batch_size=64, shuffle=True)) == len(shown)
    at_once = kind == "memory" or (kind != "shards" and budget is None)
    assert (data.replay.images, data.replay.pending) == ((len(shown), 0) if at_once else (0, len(shown)))
    replay = verify(cache, source=shown, strict=True).replay
    assert replay is not None
    assert (replay.images, replay.rounding_images) == (len(shown), 0)
    assert f"all {len(shown)} images are the teacher's" in str(replay)


def test_partners_are_compared_too(tmp_path: Path, source: ArraySource, teacher: Network) -> None:
    """A recipe that mixes images decodes two for each."""
    few = take(source, np.arange(80))
    recipe = Recipe("mixed", (), Mix(mixup_alpha=0.8))
    build_small(tmp_path / "a.zarr", _as_files(few, tmp_path), teacher, **_OPTIONS, recipe=recipe)
    build_small(tmp_path / "b.zarr", few, teacher, **_OPTIONS, recipe=recipe)
    assert np.array_equal(_checks(tmp_path / "a.zarr"), _checks(tmp_path / "b.zarr"))
    bad, keys = _replaced(few, 1)
    data = open_cache(tmp_path / "a.zarr").dataset(_as_files(bad, tmp_path), images_in_memory=0)
    with pytest.raises(MismatchError, match=f"the decoded image of '{min(keys)}'"):
        list(data.loader(0, batch_size=20))


class _Rounding(EncodedSource):
    """A decoder that rounds otherwise, in one value of ten."""

    def decode(self, row: int, side: int | None) -> np.ndarray:
        image = super().decode(row, side).astype(int)
        noise = np.random.default_rng(row).random(image.shape) < 0.1
        return np.clip(image + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_rounding_is_told_once_and_refused_when_strict(
    tmp_path: Path, source: ArraySource, cache: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    files = _as_files(source, tmp_path)
    shown: FullSource = _Rounding(**{name: value for name, value in vars(files).items() if not name.startswith("_")})
    if kind == "memory":
        images = np.stack([shown[row][0] for row in range(ROWS)]).transpose(0, 3, 1, 2)
        shown = replace(source, images=np.ascontiguousarray(images))
    caplog.set_level("INFO")
    fields = TrainOptions(out=tmp_path / "s", student="cnn-s", epochs=2, batch_size=50, loss="gdkd", num_workers=0)
    train(fields, shown, source, cache=open_cache(cache))
    assert caplog.text.count("400 of 400 images differ from the teacher's by rounding") == 1
    replay = verify(cache, source=shown).replay
    assert replay is not None
    assert replay.rounding_images == ROWS
    with pytest.raises(MismatchError, match="pixels that differ by rounding"):
        _train(tmp_path / "t", shown, cache, strict_replay=True)
    (problem,) = verify(cache, source=shown, strict=True).problems
    assert "differ by rounding" in problem


def test_rounding_in_unprobed_images_is_refused_when_strict(tmp_path: Path, source: ArraySource, cache: Path) -> None:
    bad, keys = _replaced(source, 1)
    images = bad.images.copy()
    row = source.keys.index(min(keys))
    images[row] = source.images[row] ^ (source.images[row] % 2 == 0)
    for kind in _KINDS:
        shown = _KINDS[kind](replace(source, images=images), tmp_path)
        _train(tmp_path / kind, shown, cache)
        with pytest.raises(MismatchError, match=f"'{min(keys)}' has pixels that differ by rounding"):
            _train(tmp_path / f"strict-{kind}", shown, cache, strict_replay=True)


def test_several_teachers(tmp_path: Path, source: ArraySource, cache: Path, teacher: Network) -> None:
    """Each cache's checks count; those of an older version are averaged with newer ones, and it is told."""
    second = tmp_path / "b.zarr"
    bad, keys = _replaced(source, 1)
    build_small(second, bad, teacher, **_OPTIONS)
    caches = [open_cache(cache), open_cache(second)]
    for shown in (source, _as_files(source, tmp_path)):
        with pytest.raises(MismatchError, match=f"the decoded image of '{min(keys)}'"):
            list(ensemble(caches).dataset(shown, temperature=4.0).loader(0, batch_size=50))
    without_checks(second)
    data = ensemble([open_cache(cache), open_cache(second)]).dataset(source, temperature=4.0)
    assert (data.replay.images, data.replay.unchecked) == (ROWS, ROWS)
    with pytest.raises(MismatchError, match=f"the decoded image of '{min(keys)}'"):
        ensemble([open_cache(cache), open_cache(second)]).dataset(bad, temperature=4.0)


# Kept by all that handles caches


def _contents(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


class _Counted(EncodedSource):
    """Counts how often each image is decoded."""

    def decode(self, row: int, side: int | None) -> np.ndarray:
        _DECODED[row] += 1
        return super().decode(row, side)


_DECODED: Counter[int] = Counter()


def test_a_build_decodes_no_image_for_its_check(
    tmp_path: Path, source: ArraySource, cache: Path, teacher: Network
) -> None:
    """And gives the same checks as images in memory do, also at a first view that is not 0."""
    files = _as_files(source, tmp_path)
    counted = _Counted(**{name: value for name, value in vars(files).items() if not name.startswith("_")})
    _DECODED.clear()
    options: dict[str, Any] = {**_OPTIONS, "num_views": 3, "first_view": 4, "codec_from": cache}
    options["images_in_memory"] = 0
    build_small(tmp_path / "b.zarr", counted, teacher, **options)
    unprobed = np.flatnonzero(~probed(hash_keys(source.keys)))
    assert {_DECODED[row] for row in unprobed.tolist()[1:]} == {1}
    assert np.array_equal(_checks(tmp_path / "b.zarr"), _checks(cache))
    assert sorted(file.name for file in (tmp_path / "b.zarr/source_check/c").iterdir()) == ["0", "1", "2"]


@pytest.mark.parametrize("damage", ["none", "object", "record"])
def test_an_interrupted_build(tmp_path: Path, source: ArraySource, cache: Path, teacher: Network, damage: str) -> None:
    """A shard of the first view is committed with its checks, and built again without a whole one."""
    out = tmp_path / "a.zarr"
    with pytest.raises(KeyboardInterrupt):
        # Two batches of the first shard are those that calibration had.
        build_small(out, source, counting(teacher, 2 + ROWS + 310 - 2 * 64)[0], **_OPTIONS)
    assert (out / "ledger/0/1.json").exists()
    assert b"source_check/c/1/0" in (out / "ledger/0/1.json").read_bytes()
    if damage == "object":
        (out / "source_check/c/1/0").write_bytes(b"x")
    if damage == "record":
        (out / "ledger/0/1.json").unlink()
    counted, model = counting(teacher)
    build_small(out, source, counted, **_OPTIONS)
    assert model.rows == 2 + 2 * ROWS - (300 if damage == "none" else 150)
    assert _contents(out) == _contents(cache)


def test_sidecars_and_back(tmp_path: Path, source: ArraySource, cache: Path) -> None:
    shards = _as_shards(source, tmp_path)
    to_sidecars(cache, tmp_path / "sidecars", shards)
    assert np.array_equal(_checks(tmp_path / "sidecars"), _checks(cache))
    assert verify(tmp_path / "sidecars", source=shards, strict=True).problems == ()
    from_sidecars(tmp_path / "sidecars", tmp_path / "back.zarr")
    assert _contents(tmp_path / "back.zarr") == _contents(cache)
    bad, keys = _replaced(source, 1)
    with pytest.raises(MismatchError, match=f"the decoded image of '{min(keys)}'"):
        list(open_cache(tmp_path / "sidecars").dataset(_as_shards(bad, tmp_path)).loader(0, batch_size=50))


def test_parts(tmp_path: Path, source: ArraySource, cache: Path) -> None:
    """A part keeps the checks whatever its first view is; parts join to the whole, and not with an older version's."""
    for number in (0, 1):
        copy(cache, tmp_path / str(number), views=range(number, number + 1))
    bad, _ = _replaced(source, 1)
    assert verify(tmp_path / "1", source=source, strict=True).problems == ()
    with pytest.raises(MismatchError, match="the decoded image"):
        open_cache(tmp_path / "1").dataset(bad)
    merge([tmp_path / "0", tmp_path / "1"], tmp_path / "all")
    assert _contents(tmp_path / "all") == _contents(cache)
    without_checks(tmp_path / "1")
    with pytest.raises(MismatchError, match=r"views\.source_checks is (None|True) there, (True|None) here") as caught:
        merge([tmp_path / "0", tmp_path / "1"], tmp_path / "other")
    assert "\n" not in str(caught.value)
    without_checks(tmp_path / "0")
    merge([tmp_path / "0", tmp_path / "1"], tmp_path / "old")
    assert open_cache(tmp_path / "old").source_checks() is None


@pytest.mark.parametrize("kind", ["memory", "shards"])
def test_repair(tmp_path: Path, source: ArraySource, cache: Path, kind: str) -> None:
    """Checks come back from the images alone, and from no others."""
    path = Path(shutil.copytree(cache, tmp_path / "a.zarr"))
    for name in ("source_check/c/1/0", "source_check/c/2/0", "source_check/zarr.json"):
        (path / name).unlink()
    with pytest.raises(UsageError, match="repairing it needs the data"):
        repair(path)
    with pytest.raises(CacheError, match="come out otherwise than the manifest says"):
        repair(path, source=_replaced(source, ROWS)[0])
    if kind == "memory":
        result = repair(path, source=source)
    else:
        files = _as_files(source, tmp_path)
        result = repair(path, source=files, num_workers=0)
    assert len(result.restored) == 3 or "source_check/zarr.json" not in result.restored
    assert _contents(path) == _contents(cache)


# Caches of version 0.1.0


def _few(source: ArraySource) -> ArraySource:
    return take(source, np.arange(48))


def test_a_cache_of_0_1_0(tmp_path: Path, source: ArraySource, caplog: pytest.LogCaptureFixture) -> None:
    """One that 0.1.0 itself wrote: the same digest, whole, trained from, and what is unchecked is said."""
    digest = "sha256:0ceb7e166f4d880958b5e9c5b5c7421f3079e06a27db395ae130a7da7282572f"
    cache = open_cache(_GOLDEN, digest=digest)
    assert cache.source_checks() is None
    view = cache.view(1)
    assert view.topk([0, 47]).classes[:, :3].tolist() == [[3, 7, 6], [3, 7, 6]]
    torch.testing.assert_close(
        view.logits([0])[0, :3], torch.tensor([-2.984375, -3.0955868, -2.359375]), rtol=1e-5, atol=1e-4
    )
    few = _few(source)
    said = "48 images unchecked but for those, as the cache was made by an older version"
    for shown in (few, _as_files(few, tmp_path)):
        result = verify(_GOLDEN, deep=True, source=shown, strict=True)
        assert result.problems == ()
        assert said in str(result.replay)
    caplog.set_level("INFO")
    _train(tmp_path / "s", few, _GOLDEN)
    assert said in caplog.text


def test_an_older_cache_grows(tmp_path: Path, source: ArraySource, cache: Path, teacher: Network) -> None:
    """With its codec more views are built in its form, and join it."""
    old = Path(shutil.copytree(cache, tmp_path / "old.zarr"))
    without_checks(old)
    build_small(tmp_path / "b.zarr", source, teacher, **_OPTIONS, first_view=2, codec_from=old)
    assert open_cache(tmp_path / "b.zarr").source_checks() is None
    merge([old, tmp_path / "b.zarr"], tmp_path / "all.zarr")
    assert open_cache(tmp_path / "all.zarr").num_views == 4
    (old / "logits/c/1/2/0").unlink()
    assert repair(old, source=source, teacher=teacher).problems == ()
    with pytest.raises(MismatchError, match=r"holds another build: views\.source_checks is None there, True asked"):
        build_small(old, source, teacher, **_OPTIONS)


def test_the_commands(tmp_path: Path, weights: Path) -> None:
    """Typed, as in the attack: one image of a folder is replaced."""
    digits = open_source("digits")
    folder = tmp_path / "images/train"
    for row in range(120):
        image, label = digits[row]
        (folder / f"c{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"c{label}/{row:03d}.png")
    shutil.copytree(folder, folder.parent / "val")
    data = f"imagefolder:{folder.parent}"
    source = open_source(data)

    def run(*args: Any) -> Any:
        return CliRunner().invoke(main, [str(arg) for arg in args])

    common = ["--data", data, "--teacher", "cnn-s", "--weights", weights, "--recipe", "none"]
    built = run(
        "build",
        *common,
        "--accept-teacher",
        "--codec",
        "dense",
        "--views",
        1,
        "--workers",
        0,
        "--out",
        tmp_path / "a.zarr",
    )
    assert built.exit_code == 0, built.output
    key = source.keys[int(np.flatnonzero(~probed(hash_keys(source.keys)))[7])]
    Image.fromarray(digits[1700 % len(digits)][0][:, ::-1].copy()).save(folder.parent / key)
    trained = ["train", "--data", data, "--eval-data", data, "--cache", tmp_path / "a.zarr", "--student", "cnn-s"]
    trained += ["--loss", "gdkd", "--epochs", 1, "--workers", 0, "--force", "--out", tmp_path / "s"]
    for command in (trained, [*trained, "--strict-replay"], ["verify", tmp_path / "a.zarr", "--data", data]):
        result = run(*command)
        assert result.exit_code == 1, result.output
        assert f"the decoded image of '{key}' has different pixels" in result.stderr
