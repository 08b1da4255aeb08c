"""Decoded pixels in a file: those of the source, shared, and never trusted without a look."""

import errno
import os
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from gdkd_cache_cli.main import main
from PIL import Image
from small import build_small

from gdkd_cache import TrainOptions, open_cache, open_source, train
from gdkd_cache.data.images import file
from gdkd_cache.data.images.file import in_file
from gdkd_cache.data.images.memory import decoded_once
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.source import ArraySource, FullSource, settle
from gdkd_cache.errors import SourceError, UsageError
from gdkd_cache.models.network import Network


@pytest.fixture
def source(tmp_path: Path) -> FullSource:
    """Twenty photographs, so to speak, of several sizes."""
    generator = np.random.default_rng(0)
    for row in range(20):
        folder = tmp_path / "images" / ("val" if row > 16 else "train") / f"{row % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (20 + row, 40 - row, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((80, 60)).crop((0, 0, 60 + row, 50)).save(folder / f"{row:02d}.jpg")
    return open_source(f"imagefolder:{tmp_path / 'images'}")


def _file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def _same(one: FullSource, other: FullSource, side: int | None) -> bool:
    return all(np.array_equal(one.decode(row, side), other.decode(row, side)) for row in range(len(one)))


@pytest.mark.parametrize("side", [None, 25])
def test_the_same_source(tmp_path: Path, source: FullSource, side: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    held = in_file(source, side, tmp_path / "kept")
    assert _same(held, source, None)
    assert _same(held, source, side)
    for name in ("name", "digest", "keys", "classes", "mean", "std", "scales", "images", "shard_starts"):
        assert getattr(held, name) == getattr(source, name)
    monkeypatch.setattr("gdkd_cache.data.source.decode_image", lambda *_: pytest.fail("decoded again"))
    for again in (in_file(source, side, tmp_path / "kept"), pickle.loads(pickle.dumps(held))):
        assert again.decode(3, side).tobytes() == held.decode(3, side).tobytes()
        assert again.decode(3, side).flags.writeable
    assert [_file(tmp_path / "kept").suffix] == [".pixels"]


class _Own:
    keys, classes, digest = ("a", "b", "c"), ("x", "y"), "sha256:own"

    def __len__(self) -> int:
        return 3

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        return np.full((row + 2, 5, 3), row, np.uint8), row % 2


class _Remote:
    """Shards that come and go."""

    def hold(self, shard: int) -> Future[None]:
        raise AssertionError

    def release(self, shard: int) -> None:
        raise AssertionError


def test_other_sources(tmp_path: Path, images: Path) -> None:
    shards = open_source(f"wds:{images}/Train-*.tar", stream=True)
    for given in (settle(_Own()), shards, open_source(f"wds:{images}/Train-*.tar")):
        held = in_file(given, None, tmp_path / "kept")
        assert _same(held, given, None)
        assert held.shard_starts is given.shard_starts
    assert len(list((tmp_path / "kept").iterdir())) == 3
    with pytest.raises(UsageError, match="--decoded keeps images that lie on this machine"):
        in_file(replace(settle(_Own()), remote=_Remote()), None, tmp_path)


def _flip(data: bytearray) -> None:
    data[-7] ^= 4


_DAMAGES: dict[str, Callable[[bytearray], Any]] = {
    "cut": lambda data: data.pop(),
    "longer": lambda data: data.append(0),
    "no index": lambda data: data.__delitem__(slice(40, None)),
    "empty": lambda data: data.clear(),
    "another length": lambda data: data.__setitem__(slice(0, 8), b"\xff" * 8),
    "another head": lambda data: data.__setitem__(slice(0, 60), data[0:60].replace(b'"files": "', b'"files": "0')[:60]),
    "another index": lambda data: data.__setitem__(450, data[450] ^ 1),
}


@pytest.mark.parametrize("damage", _DAMAGES)
def test_what_is_not_whole_is_made_again(
    tmp_path: Path, source: FullSource, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    in_file(source, None, tmp_path / "kept")
    file = _file(tmp_path / "kept")
    whole = file.read_bytes()
    broken = bytearray(whole)
    _DAMAGES[damage](broken)
    assert broken != whole
    file.write_bytes(broken)
    assert _same(in_file(source, None, tmp_path / "kept"), source, None)
    assert file.read_bytes() == whole
    assert f"decoded images {file} are damaged: they are made again" in caplog.text


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_damaged_pixels_are_named(tmp_path: Path, source: FullSource, when: str) -> None:
    held = in_file(source, None, tmp_path / "kept")
    file = _file(tmp_path / "kept")
    data = bytearray(file.read_bytes())
    _flip(data)
    file.write_bytes(data)
    if when == "before":
        held = in_file(source, None, tmp_path / "kept")
    held.decode(0, None)
    last = len(source) - 1
    with pytest.raises(SourceError, match=f"image '{source.keys[last]}' is damaged in the decoded images .*remove"):
        held.decode(last, None)
    os.truncate(file, 2000)
    with pytest.raises(SourceError, match="is damaged in the decoded images"):
        held.decode(last, None)
    file.unlink()
    with pytest.raises(SourceError, match="cannot be read: No such file"):
        pickle.loads(pickle.dumps(held)).decode(0, None)


def test_other_images_get_another_file(tmp_path: Path, source: FullSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other files under the same keys, another side, another Pillow."""
    folder = tmp_path / "kept"
    in_file(source, None, folder)
    in_file(source, 25, folder)
    image = tmp_path / "images" / source.keys[4]
    Image.new("RGB", (30, 30)).save(image)
    assert _same(in_file(source, None, folder), source, None)
    monkeypatch.setattr("PIL.__version__", "0")
    in_file(source, None, folder)
    assert len(list(folder.iterdir())) == 4


def test_no_room(tmp_path: Path, source: FullSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before anything is written, or, where it was less than thought, with nothing left."""
    folder = tmp_path / "kept"
    said = r"has no room for the decoded images, about [\d,]+ bytes: free some, or leave --decoded out"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(SourceError, match=said):
        in_file(source, None, folder)
    monkeypatch.undo()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SourceError, match=said):
        in_file(source, None, folder)
    assert not list(folder.iterdir())


def test_an_undecodable_image_leaves_nothing(tmp_path: Path, source: FullSource) -> None:
    (tmp_path / "images" / source.keys[4]).write_bytes(b"no image")
    with pytest.raises(SourceError, match=f"'{source.keys[4]}' cannot be decoded"):
        in_file(source, None, tmp_path / "kept")
    assert not list((tmp_path / "kept").iterdir())


def test_remnants_are_swept(tmp_path: Path, source: FullSource) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / "x.pixels.part").write_bytes(b"of one that was killed")
    (folder / "mine.txt").write_text("")
    in_file(source, None, folder)
    assert sorted(path.suffix for path in folder.iterdir()) == [".pixels", ".txt"]


def _decode_all(folder: Path, root: Path, queue: Any) -> None:
    made = []
    write = file._write
    file._write = lambda *given: (made.append(1), write(*given))  # pyright: ignore[reportAttributeAccessIssue]
    held = in_file(open_source(f"imagefolder:{root}"), None, folder)
    queue.put((len(made), held.decode(5, None).tobytes()))


def test_processes_share_it(tmp_path: Path, source: FullSource) -> None:
    context = get_context("forkserver")
    queue = context.Queue()
    processes = [
        context.Process(target=_decode_all, args=(tmp_path / "kept", tmp_path / "images", queue)) for _ in "ab"
    ]
    for process in processes:
        process.start()
    found = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(made for made, _ in found) == [0, 1]
    assert {pixels for _, pixels in found} == {source.decode(5, None).tobytes()}


def test_builds_and_trainings_use_it(tmp_path: Path, source: FullSource, teacher: Network) -> None:
    """The same cache and weights; images in memory need none."""
    evaluated = open_source(f"imagefolder:{tmp_path / 'images'}", split="test")
    recipe, folder = open_recipe("imagenet:size=8", 8, 8), tmp_path / "kept"
    source = replace(source, classes=[str(i) for i in range(10)])
    evaluated = replace(evaluated, classes=source.classes)
    found = []
    for decoded in (None, folder):
        out = tmp_path / f"out-{decoded is None}"
        digest = build_small(out / "a.zarr", source, teacher, recipe=recipe, decoded=decoded).manifest.digest
        options = TrainOptions(
            out=out, student="cnn-s", epochs=1, loss="gdkd", batch_size=8, num_workers=0, decoded=decoded
        )
        train(options, source, evaluated, cache=open_cache(out / "a.zarr"))
        found.append((digest, (out / "last.safetensors").read_bytes()))
    assert found[0] == found[1]
    assert len(list(folder.iterdir())) == 2


def test_images_in_memory_need_no_file(tmp_path: Path, digits: ArraySource) -> None:
    assert decoded_once(digits, open_recipe("none", 8, 8), None, tmp_path) is digits
    assert not list(tmp_path.iterdir())


def test_the_command_line(tmp_path: Path, source: FullSource) -> None:
    out, folder = tmp_path / "out", tmp_path / "kept"
    command = ["train", "--loss", "ce", "--data", f"imagefolder:{tmp_path / 'images'}", "--student", "cnn-s"]
    command += ["--epochs", "1", "--recipe", "imagenet:size=8", "--workers", "0", "--out", str(out)]
    result = CliRunner().invoke(main, [*command, "--decoded", str(folder)])
    assert result.exit_code == 0, result.output
    assert len(list(folder.iterdir())) == 2
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(main, [*command, "--force", "--decoded", str(tmp_path / "file")])
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
