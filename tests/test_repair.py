"""Repair gives the very same bytes back, or leaves the cache as it was; dropped views leave a smaller, whole cache."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from gdkd_cache_cli.main import main
from safetensors.torch import load_file, save_file
from small import build_small, counting, take

from gdkd_cache import open_cache, open_source, pack
from gdkd_cache.building.repair import repair
from gdkd_cache.checking.verify import verify
from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import CacheError, MismatchError, UsageError
from gdkd_cache.models.network import Network
from gdkd_cache.models.normalization import Normalization
from gdkd_cache.models.opening import open_network
from gdkd_cache.sharing.merge import merge

_OPTIONS: dict[str, Any] = {"codec": "transform", "shard_rows": 70, "num_views": 3}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, digits: ArraySource, teacher: Network) -> Path:
    """A fitted cache of three views in four shards each; not to be changed."""
    path = tmp_path_factory.mktemp("whole") / "a.zarr"
    build_small(path, digits, teacher, **_OPTIONS)
    return path


@pytest.fixture
def cache(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "a.zarr"))


def _contents(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_exactly_what_is_damaged_is_built_again(
    cache: Path, whole: Path, digits: ArraySource, teacher: Network
) -> None:
    """Two shards: the teacher sees their rows and no others, and every byte comes back."""
    names = ["packed/c/1/2/0", "probe/c/2/3/0", "escape/c/2/3/0"]
    for name in names:
        (cache / name).write_bytes(b"x")
    counted, model = counting(teacher)
    result = repair(cache, source=digits, teacher=counted)
    assert result.restored == tuple(sorted(names))
    assert result.problems == ()
    assert model.rows == 70 + 46 + 2  # which are blank
    assert _contents(cache) == _contents(whole)
    assert repair(cache).restored == ()


@pytest.mark.parametrize(
    ("pattern", "needs"),
    [
        ("**/zarr.json", ""),
        ("labels/c/0", "data"),
        ("keys/c/0", "data"),
        ("tables/c/0", "teacher"),
        ("*/c/*", "teacher"),
    ],
)
def test_any_object_comes_back(
    cache: Path, whole: Path, digits: ArraySource, teacher: Network, pattern: str, needs: str
) -> None:
    """Each kind with no more than it needs, and refused with less."""
    for path in cache.glob(pattern):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    given: dict[str, Any] = {"data": {"source": digits}, "teacher": {"source": digits, "teacher": teacher}}.get(
        needs, {}
    )
    if needs:
        damaged = _contents(cache)
        with pytest.raises(UsageError, match="repairing it needs the data"):
            repair(cache)
        assert _contents(cache) == damaged
    assert repair(cache, **given).problems == ()
    assert _contents(cache) == _contents(whole)


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory, digits: ArraySource, teacher: Network) -> Path:
    """Four views that two teams built otherwise: in batches of 64 and 100, the second in bfloat16."""
    folder = tmp_path_factory.mktemp("merged")
    common: dict[str, Any] = {**_OPTIONS, "num_views": 2}
    build_small(folder / "a.zarr", digits, teacher, **common)
    other: dict[str, Any] = {"first_view": 2, "codec_from": folder / "a.zarr", "batch_size": 100}
    build_small(folder / "b.zarr", digits, replace(teacher, precision="bfloat16"), **common, **other)
    merge([folder / "a.zarr", folder / "b.zarr"], folder / "all.zarr")
    return folder / "all.zarr"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_parts_that_were_built_otherwise(
    tmp_path: Path, merged: Path, digits: ArraySource, teacher: Network, precision: str
) -> None:
    """Each part of a merged cache is built again as it was built, whatever the teacher's precision is here."""
    path = Path(shutil.copytree(merged, tmp_path / "a.zarr"))
    for name in ("packed/c/1/2/0", "packed/c/2/0/0", "escape/c/3/3/0", "tables/c/0"):
        (path / name).write_bytes(b"x")
    result = repair(path, source=digits, teacher=replace(teacher, precision=precision))
    assert (len(result.restored), result.problems) == (4, ())
    assert _contents(path) == _contents(merged)


def test_a_merged_cache_is_verified_as_it_was_built(merged: Path, digits: ArraySource, teacher: Network) -> None:
    counted, model = counting(teacher)
    result = verify(merged, source=digits, teacher=counted, num_rows=4 * 200)
    assert result.problems == ()
    assert result.rerun is not None
    assert result.rerun.rows == 800
    assert model.batches == {64, 100, 200 % 64}


def test_views_dropped_of_a_merged_cache(tmp_path: Path, merged: Path, digits: ArraySource, teacher: Network) -> None:
    """What built the views that stay is still stated, and nothing of those that went."""
    path = Path(shutil.copytree(merged, tmp_path / "a.zarr"))
    (path / "packed/c/2/0/0").unlink()
    assert repair(path, drop=True).dropped_views == 2
    build_small(tmp_path / "b.zarr", digits, teacher, **{**_OPTIONS, "num_views": 2})
    assert _contents(path) == _contents(tmp_path / "b.zarr")


def test_other_bytes_are_refused(cache: Path, digits: ArraySource, teacher: Network) -> None:
    """Wrong data, a wrong teacher, and one that only claims to be the right one: the cache stays as it was."""
    (cache / "packed/c/1/2/0").unlink()
    before = _contents(cache)
    with pytest.raises(MismatchError, match="was not built from this data"):
        repair(cache, source=take(digits, np.arange(255)), teacher=teacher)
    changed = replace(teacher, description=replace(teacher.description, weights="sha256:0"))
    with pytest.raises(MismatchError, match=r"teacher\.weights is"):
        repair(cache, source=digits, teacher=changed)
    with pytest.raises(CacheError, match="1 of 1 damaged objects come out otherwise than the manifest says"):
        repair(cache, source=digits, teacher=replace(teacher, mean=(0.1, 0.1, 0.1)))
    (cache / "tables/c/0").unlink()
    with pytest.raises(CacheError, match="calibration gives another codec here"):
        repair(cache, source=digits, teacher=replace(teacher, mean=(0.1, 0.1, 0.1)))
    assert _contents(cache) == {name: data for name, data in before.items() if name != "tables/c/0"}


def test_dropped_views(cache: Path, tmp_path: Path, digits: ArraySource, teacher: Network) -> None:
    """What is left is what a build of fewer views gives with the same codec, byte for byte: views keep numbers."""
    whole = shutil.copytree(cache, tmp_path / "whole.zarr")
    (cache / "packed/c/2/0/0").unlink()
    (cache / "escape/c/1/1/0").write_bytes(b"")
    result = repair(cache, drop=True)
    assert (result.dropped_views, result.problems) == (2, ())
    build_small(tmp_path / "b.zarr", digits, teacher, **{**_OPTIONS, "num_views": 1, "codec_from": whole})
    assert _contents(cache) == _contents(tmp_path / "b.zarr")
    assert verify(cache, deep=True, source=digits, teacher=teacher, num_rows=32).problems == ()
    (cache / "probe/c/0/0/0").unlink()
    with pytest.raises(CacheError, match="view 0 is damaged"):
        repair(cache, drop=True)


def test_a_drop_that_was_killed(cache: Path, tmp_path: Path, digits: ArraySource, teacher: Network) -> None:
    """Killed after the metadata, or after the manifest: the same command again ends in the same cache."""
    dropped = Path(shutil.copytree(cache, tmp_path / "dropped.zarr"))
    for path in (cache, dropped):
        (path / "packed/c/2/0/0").unlink()
    repair(dropped, drop=True)
    for names in (["packed/zarr.json"], ["packed/zarr.json", "probe/zarr.json", "escape/zarr.json"]):
        killed = Path(shutil.copytree(cache, tmp_path / f"{len(names)}.zarr"))
        for name in names:
            shutil.copy(dropped / name, killed / name)
        assert repair(killed, drop=True).problems == ()
        assert _contents(killed) == _contents(dropped)


def test_a_packed_cache(tmp_path: Path) -> None:
    """Its logits are elsewhere: only its metadata, or fewer views, can be had."""
    logits = np.random.default_rng(0).normal(size=(2, 40, 10)).astype(np.float32)
    keys = [str(i) for i in range(40)]
    pack(tmp_path / "a.zarr", logits, keys=keys, labels=np.arange(40) % 10, codec="dense")
    (tmp_path / "a.zarr/zarr.json").unlink()
    (tmp_path / "a.zarr/logits/c/1/0/0").unlink()
    with pytest.raises(UsageError, match="dropping views"):
        repair(tmp_path / "a.zarr")
    assert repair(tmp_path / "a.zarr", drop=True).dropped_views == 1
    assert open_cache(tmp_path / "a.zarr").num_views == 1


@pytest.mark.parametrize("damage", [lambda data: data[:-3], lambda data: data + b" "], ids=["cut", "space"])
def test_a_manifest_cannot_be_repaired(cache: Path, damage: Callable[[bytes], bytes]) -> None:
    path = cache / "manifest.json"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CacheError, match=r"manifest.json (is not JSON|was edited)"):
        repair(cache)


def test_the_command(tmp_path: Path, weights: Path) -> None:
    def run(*args: Any) -> Any:
        return CliRunner().invoke(main, [str(arg) for arg in args])

    common = ["--data", "digits", "--teacher", "cnn-s", "--weights", weights]
    assert (
        run(
            "build", *common, "--accept-teacher", "--views", 2, "--codec", "dense", "--out", tmp_path / "a.zarr"
        ).exit_code
        == 0
    )
    digest = open_cache(tmp_path / "a.zarr").manifest.digest
    victim = tmp_path / "a.zarr/logits/c/1/0/0"
    victim.write_bytes(b"")
    result = run("repair", tmp_path / "a.zarr")
    assert result.exit_code == 2
    assert "repairing it needs the data and the teacher" in result.stderr
    result = run("repair", tmp_path / "a.zarr", *common)
    assert result.exit_code == 0, result.output
    assert f"1 objects repaired, whole; {digest}" in result.stdout
    victim.write_bytes(b"")
    (tmp_path / "a.zarr/stray").write_bytes(b"")
    result = run("repair", tmp_path / "a.zarr", "--drop")
    assert result.exit_code == 1
    assert "views 1 to 1 dropped, 1 problems are left" in result.stdout


def test_weights_without_a_card(tmp_path: Path, weights: Path) -> None:
    """The manifest says how the inputs of such a teacher are normalised; a card that says otherwise is believed."""
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(weights), bare)
    source = open_source("digits")
    normalization = Normalization((0.2, 0.3, 0.4), (0.5, 0.6, 0.7))
    teacher = open_network("cnn-s", bare, 10, normalization=normalization, device="cpu")
    build_small(tmp_path / "a.zarr", source, teacher, codec="dense")
    digest = open_cache(tmp_path / "a.zarr").manifest.digest
    common = ["--data", "digits", "--teacher", "cnn-s", "--weights"]

    def run(command: str, weights: Path) -> Any:
        return CliRunner().invoke(main, [command, str(tmp_path / "a.zarr"), *common, str(weights)])

    assert run("verify", bare).exit_code == 0
    result = run("verify", weights)
    assert result.exit_code == 1
    assert "the teacher's mean is (0.3, 0.3, 0.3) here and (0.2, 0.3, 0.4) in the manifest" in result.stderr
    (tmp_path / "a.zarr/logits/c/1/0/0").write_bytes(b"")
    result = run("repair", bare)
    assert result.exit_code == 0, result.output
    assert f"1 objects repaired, whole; {digest}" in result.stdout
