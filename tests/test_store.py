"""The store: what is committed is whole, what is read is checked, and nothing leaves the folder."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from small import build_small, counting, forge

from gdkd_cache import open_cache
from gdkd_cache.checking.verify import verify
from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import CacheError, MismatchError
from gdkd_cache.models.network import Network
from gdkd_cache.objects.folder import Folder
from gdkd_cache.schema import to_json
from gdkd_cache.store.facts import UNFITTED, UNMEASURED
from gdkd_cache.store.manifest import BUILD_NAME, MANIFEST_NAME, Manifest
from gdkd_cache.store.place import Begun, Complete, Empty, Place


@pytest.fixture
def cache_copy(digits_cache: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits_cache, tmp_path / "copy.zarr"))


def test_a_cache_is_plain_zarr(digits_cache: Path) -> None:
    cache = open_cache(digits_cache)
    labels, logits = (zarr.open_array(str(digits_cache), path=name, mode="r") for name in ("labels", "logits"))
    assert np.array_equal(np.asarray(labels[:]), cache.labels)
    stored = np.asarray(logits[1])
    assert np.array_equal(stored.astype(np.float32), cache.view(1).logits(range(256)).numpy())


def test_opening_reads_the_manifest_only(cache_copy: Path) -> None:
    for child in cache_copy.iterdir():
        if child.is_dir():
            shutil.rmtree(child)
    cache = open_cache(cache_copy)
    assert (cache.num_views, cache.num_rows, cache.num_classes) == (2, 256, 10)
    with pytest.raises(CacheError, match="is missing"):
        cache.view(0)
    with pytest.raises(CacheError, match="is missing"):
        _ = cache.keys


def _objects(path: Path) -> list[str]:
    return sorted(open_cache(path).manifest.objects)


def test_every_damage_is_found(cache_copy: Path) -> None:
    """Flip, truncate, empty, lengthen, delete or swap any object: `problems` names it, and reading refuses it."""
    rng = np.random.default_rng(0)
    names = _objects(cache_copy)
    for name in names:
        path = cache_copy / name
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        for damage in (bytes(flipped), whole[: len(whole) // 2], b"", whole + b"\0", None):
            path.unlink()
            if damage is not None:
                path.write_bytes(damage)
            found = [found for found, problem in open_cache(cache_copy).problems() if problem is not None]
            assert found == [name]
            path.write_bytes(whole)
    a, b = (cache_copy / f"logits/c/{view}/0/0" for view in (0, 1))
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    for view in (0, 1):
        with pytest.raises(CacheError, match=r"than the manifest's|checksum is not"):
            open_cache(cache_copy).view(view)


def test_unlisted_objects_are_found(cache_copy: Path) -> None:
    (cache_copy / "logits" / "extra").write_bytes(b"x")
    problems = [problem for _, problem in open_cache(cache_copy).problems() if problem is not None]
    assert len(problems) == 1
    assert "logits/extra is not listed" in problems[0]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:-10], "not JSON"),
        (lambda data: data.replace(b'"seed":0', b'"seed":1'), "changed after the build"),
        (lambda data: data.replace(b"gdkd-cache/1", b"gdkd-cache/9"), "reads 'gdkd-cache/1'"),
        (lambda data: b"[]", "not a JSON object"),
        (lambda data: b"[" * 100_000, "manifest.json is not JSON"),
        (lambda data: b'{"format":"gdkd-cache/1"}', "manifest.json.identity is missing"),
        (lambda data: data + b"\n", "was edited"),
        (lambda data: data.replace(b",", b", ", 1), "json was edited"),
    ],
)
def test_damaged_manifests_are_refused(cache_copy: Path, damage: Callable[[bytes], bytes], said: str) -> None:
    path = cache_copy / MANIFEST_NAME
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CacheError, match=said):
        open_cache(cache_copy)


def test_pinned_digest(digits_cache: Path) -> None:
    digest = open_cache(digits_cache).manifest.digest
    open_cache(digits_cache, digest=digest)
    with pytest.raises(MismatchError, match="not the sha256:0 asked for"):
        open_cache(digits_cache, digest="sha256:0")


def test_a_forged_manifest_cannot_reach_outside(cache_copy: Path) -> None:
    secret = cache_copy.parent / "secret"
    secret.write_bytes(b"secret")

    def escape(stored: dict[str, Any]) -> None:
        stored["objects"]["../secret"] = [6, "0" * 64]

    forge(cache_copy, escape)
    problems = [problem for name, problem in open_cache(cache_copy).problems() if name == "../secret"]
    assert problems
    assert "is not an object name" in str(problems[0])


def test_links_are_refused(cache_copy: Path) -> None:
    outside = cache_copy.parent / "outside"
    shutil.move(cache_copy / "logits", outside)
    (cache_copy / "logits").symlink_to(outside)
    with pytest.raises(CacheError, match="symbolic link"):
        open_cache(cache_copy).view(0)


def test_a_forged_class_count_is_refused(cache_copy: Path) -> None:
    forge(cache_copy, lambda stored: stored["identity"]["codec"].update(num_classes=11))
    with pytest.raises(CacheError, match="codec has 11 classes, the manifest names 10"):
        open_cache(cache_copy)


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../b", ".hidden", "a//b", "a/", "A b", "a\n"])
def test_object_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(CacheError, match="is not an object name"):
        Folder(tmp_path).path(name)


def test_a_failed_write_leaves_the_old_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(tmp_path)
    folder.write("a/b", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*a/b"):
        folder.write("a/b", b"new")
    assert folder.read("a/b", 10) == b"old"
    assert list(folder.sizes()) == ["a/b"]
    assert not list(tmp_path.rglob("*.partial"))


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    folder = Folder(tmp_path)
    assert [folder.create("a", data) for data in (b"one", b"one", b"two")] == [True, True, False]
    assert folder.read("a", 9) == b"one"


def test_manifest_round_trip(digits_cache: Path) -> None:
    manifest = open_cache(digits_cache).manifest
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    assert manifest.num_bytes == sum(p.stat().st_size for p in digits_cache.rglob("*") if p.is_file())


def test_what_a_place_holds(tmp_path: Path, digits: ArraySource, teacher: Network) -> None:
    """Nothing, a build that has begun, or the cache; tables that are lost are nothing to go on with."""
    whole = build_small(tmp_path / "whole.zarr", digits, teacher, codec="transform").manifest
    identity = replace(whole.identity, codec=UNFITTED, fidelity=UNMEASURED)  # as a build asks, before a codec is fitted
    assert Place(tmp_path / "new.zarr", identity).look() == Empty()
    assert not list((tmp_path / "new.zarr").iterdir())
    with pytest.raises(KeyboardInterrupt):
        build_small(tmp_path / "a.zarr", digits, counting(teacher, 256 + 200)[0], codec="transform")
    place = Place(tmp_path / "a.zarr", identity)
    begun = place.look()
    assert isinstance(begun, Begun)
    assert (begun.codec.to_json(), begun.fidelity) == (to_json(whole.identity.codec), whole.identity.fidelity)
    before = (tmp_path / "a.zarr" / BUILD_NAME).read_bytes()
    shutil.rmtree(tmp_path / "a.zarr" / "tables")
    assert place.look() == Empty()
    writer = place.begin(begun)  # what stands there is this very build
    assert (tmp_path / "a.zarr" / BUILD_NAME).read_bytes() == before
    assert all(writer.committed(*unit) for unit in writer.recorded())
    assert isinstance(place.look(), Begun)
    build_small(tmp_path / "a.zarr", digits, teacher, codec="transform")  # another process finishes and tidies up
    assert place.begin(begun).published()
    assert not (tmp_path / "a.zarr" / BUILD_NAME).exists()
    assert Place(tmp_path / "whole.zarr", identity).look() == Complete(whole)
    assert Place(tmp_path / "whole.zarr", replace(identity, num_views=3)).look(force=True) == Empty()
    assert verify(tmp_path / "whole.zarr").problems == ()  # which it is until the other build begins
