"""What is no file, no text, no recipe or of other classes: one line that names the thing, and nothing is run."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gdkd_cache_cli.main import main
from inputs import encoded, refused, shard

import gdkd_cache as gc
from gdkd_cache import open_source
from gdkd_cache.building.arrays import read_logits
from gdkd_cache.data.images.decoding import decode_image
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import MismatchError, SourceError, UsageError


def _no_file(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))  # a socket's path must be short
    else:
        path.symlink_to("/nowhere/at/all")


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "socket", "nothing"])
def test_what_is_no_file_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.toml"
    _no_file(path, kind)
    said = {"folder": "is a folder", "nothing": "does not exist"}.get(kind, "is no plain file")
    refused(lambda: open_recipe(str(path), 8, 8), f"recipe {path} {said}", UsageError)
    refused(lambda: read_logits(path, None, None), f"logits {path} {said}", SourceError)
    np.save("logits.npy", np.zeros((1, 3, 4)))
    refused(lambda: read_logits(Path("logits.npy"), path, None), f"labels {path} {said}", SourceError)
    refused(lambda: read_logits(Path("logits.npy"), None, path), f"keys {path} {said}", SourceError)
    refused(lambda: decode_image("a", path), f"image {path} {said}", SourceError)
    refused(lambda: open_source(f"wds:{path}"), f"{path} {said}", SourceError)
    if kind != "nothing":
        path.rename(tmp_path / "classes.txt")
        shard(tmp_path / "b.tar")
        refused(lambda: open_source(f"wds:{tmp_path}/b.tar"), f"list .*classes.txt {said}", SourceError)
        (tmp_path / "classes.txt").rename(tmp_path / "wnids.txt")
        refused(lambda: open_source(f"tiny-imagenet:{tmp_path}"), f"list .*wnids.txt {said}", SourceError)


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """Linux allows any bytes."""
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "1.png").write_bytes(encoded("PNG"))
    odd = os.fsencode(tmp_path / "train" / "cat") + b"/\xff.png"
    Path(os.fsdecode(odd)).write_bytes(encoded("PNG"))
    refused(lambda: open_source(f"imagefolder:{tmp_path}"), r"'train/cat/\\udcff.png' is no text in UTF-8", SourceError)
    os.unlink(odd)  # noqa: PTH108
    Path(tmp_path / "train" / "cat").rename(os.fsdecode(os.fsencode(tmp_path / "train") + b"/c\xe4t"))
    result = CliRunner().invoke(
        main, f"train --loss ce --data imagefolder:{tmp_path} --student cnn-s --epochs 1 --out o".split()
    )
    assert (result.exit_code, result.exception.__class__) == (1, SystemExit)
    assert "is no text in UTF-8" in result.stderr


_STEP = '[[steps]]\nstep = "random_crop"\nsize = {}\n'


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("deep.json", b'{"steps":' + b"[" * 20_000 + b"]" * 20_000 + b"}"),
        ("deep.toml", b"steps = " + b"[" * 20_000 + b"]" * 20_000),
        ("nested.json", b'{"steps": [' + b'{"step":' * 300 + b"1" + b"}" * 300 + b"]}"),
        ("text.toml", _STEP.format('"32"').encode()),
        ("huge.toml", _STEP.format("0x" + "f" * 6000).encode()),
        ("long.json", b'{"steps": [{"step": "random_crop", "size": ' + b"9" * 6000 + b"}]}"),
        ("nan.toml", b'[[steps]]\nstep = "horizontal_flip"\nprobability = nan\n'),
        ("bytes.toml", b"\xff\xfe"),
        ("name.json", rb'{"name": "\ud800", "steps": []}'),
        ("escape.json", rb'{"name": "\u001b[2J", "steps": []}'),
        ("number.json", b'{"name": 3, "steps": []}'),
        ("large.toml", b"#" * 2**21),
        ("null.json", b'{"steps": [null]}'),
        ("list.json", b"[]"),
        ("mix.json", b'{"steps": [], "mix": {"mixup_alpha": "1"}}'),
        ("quantiles.json", b'{"steps": [], "mix": {"mixup_alpha": 1, "mixup_quantiles": ["a"]}}'),
        ("empty.json", b""),
    ],
)
def test_hostile_recipe_files(tmp_path: Path, name: str, text: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(text)
    refused(lambda: open_recipe(str(path), 32, 32), f"recipe {path}", UsageError)


@pytest.mark.parametrize(
    "spec",
    ["compat:..:x", "compat:torch.nn:Linear", "compat:torchvision.transforms.v2:Resize", "compat:os:system",
     "compat:a..b:c", "compat::", "compat:torch", f"crop-flip:size={'9' * 30}", f"imagenet-eval:size={'9' * 400}",
     f"imagenet-eval:resize={'9' * 30}", f"crop-flip:padding=-{'9' * 30}", "imagenet:size=0"],
)  # fmt: skip
def test_hostile_recipe_specs(spec: str) -> None:
    refused(lambda: open_recipe(spec, 32, 32), None, UsageError)


@pytest.mark.parametrize(
    ("classes", "said"), [("abcdefghi", "class 0 is a in .*, which has 9 classes"), ("012345678x", "class 9 is x in")]
)
def test_other_classes_are_named(digits: ArraySource, tmp_path: Path, classes: str, said: str) -> None:
    other = replace(digits, labels=np.zeros(256, np.int64), classes=tuple(classes))
    options = gc.TrainOptions(student="cnn-s", out=tmp_path, loss="ce", epochs=1)
    refused(lambda: gc.train(options, digits, other), said, MismatchError)
