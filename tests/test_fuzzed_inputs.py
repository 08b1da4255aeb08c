"""Damaged recipes, images, shards and arrays: each works or gives one line; and no small one takes much memory."""

import io
import json
import lzma
import random
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gdkd_cache import open_source
from gdkd_cache.building.arrays import read_logits
from gdkd_cache.data.images.decoding import decode_image
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.source import class_ids
from gdkd_cache.errors import GdkdCacheError

_CASES = 250
_PIXELS = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
_SPLICED = [b"\xff" * 4, b"\x00" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"9" * 30, b"-1", b"[" * 3000,
            b'{"a":' * 900, b"nan", b"\xed\xa0\x80", b"0x" + b"f" * 5000]  # fmt: skip


def _damaged(seeds: list[bytes], rng: random.Random) -> bytes:
    """One of the files with a few bytes changed, left out, put in, or cut; mostly near the beginning."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(max(1, len(data) if rng.random() < 0.4 else min(len(data), 150)))
        change = rng.randrange(6)
        if change < 2:
            data[at : at + 1] = rng.randbytes(1)
        elif change == 2:
            del data[at : at + rng.randrange(40)]
        elif change == 3:
            data[at : at + 4] = rng.choice(_SPLICED)
        elif change == 4:
            other = rng.choice(seeds)
            data[at:at] = other[rng.randrange(len(other)) :][: rng.randrange(600)]
        elif rng.random() < 0.5:
            data = data[:at]
    return bytes(data)


def _fuzz(seeds: list[bytes], use: Callable[[bytes], object]) -> None:
    """Whatever is raised is one of our one-line errors; warnings are errors here, too."""
    rng, messages = random.Random(0), []
    for seed in seeds:
        use(seed)
    for _ in range(_CASES):
        try:
            use(_damaged(seeds, rng))
        except GdkdCacheError as error:
            messages.append(str(error))
    assert len(messages) > _CASES / 10
    assert not [message for message in messages if "\n" in message or not message]


def _image(kind: str, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(_PIXELS).convert(mode).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "PPM", "GIF", "TIFF"])
def test_images(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    modes = {"JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGB", "P", "RGBA", "1"), "BMP": ("RGB", "P"), "PPM": ("RGB", "L")}
    seeds = [_image(kind, mode) for mode in modes.get(kind, ("RGB",))]
    if kind == "TIFF":
        seeds += [_image(kind, compression=name) for name in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")]

    def use(data: bytes) -> None:
        image = decode_image("a", data, 8)
        assert image.dtype == np.uint8
        assert image.shape[2:] == (3,)

    _fuzz(seeds, use)
    assert "Traceback" not in capfd.readouterr().err  # libtiff itself speaks there


@pytest.mark.parametrize("pack", [bytes, lambda data: lzma.compress(data, preset=0)])
def test_shards(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    seeds = []
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=form) as tar:
            for name in ("a", "l" * 120 + "é"):
                for kind, data in (("png", _image("PNG")), ("cls", b"1")):
                    member = tarfile.TarInfo(f"{name}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        seeds.append(pack(file.getvalue()))

    def use(data: bytes) -> None:
        (tmp_path / "a.tar").write_bytes(data)
        source = open_source(f"wds:{tmp_path}/a.tar", stream=len(data) % 2 == 0 and pack is bytes)
        for row in range(len(source)):
            source[row]
        assert source.digest

    _fuzz(seeds, use)


_RECIPE = {
    "name": "x",
    "steps": [
        {"step": "random_resized_crop", "size": 8, "scale": [0.1, 1.0], "interpolation": "bilinear"},
        {"step": "rand_augment", "num_ops": 2, "magnitude": 9},
        {"step": "random_erasing", "probability": 0.5},
    ],
    "mix": {"mixup_alpha": 0.2},
    "decode_side": 30,
}
_TOML = """name = "x"
decode_side = 30
mix = {mixup_alpha = 0.2}
[[steps]]
step = "random_crop"
size = 8
padding = 1
[[steps]]
step = "color_jitter"
brightness = 0.4
"""


@pytest.mark.parametrize(("name", "text"), [("a.json", json.dumps(_RECIPE)), ("a.toml", _TOML)])
def test_recipe_files(tmp_path: Path, name: str, text: str) -> None:
    def use(data: bytes) -> None:
        (tmp_path / name).write_bytes(data)
        open_recipe(str(tmp_path / name), 8, 8)

    _fuzz([text.encode()], use)


def test_recipe_specs() -> None:
    def use(data: bytes) -> None:
        open_recipe(data.decode(errors="surrogateescape").replace("compat:", ""), 8, 8)

    _fuzz([b"crop-flip:size=8,padding=1", b"imagenet-randaug:size=64,num_ops=2", b"imagenet-eval:resize=300"], use)


@pytest.mark.parametrize("form", ["npy", "npz"])
def test_arrays(tmp_path: Path, form: str) -> None:
    logits, seeds = np.random.default_rng(0).normal(size=(2, 6, 5)), []
    for dtype in ("<f2", ">f4", "<f8", "g"):
        file = io.BytesIO()
        if form == "npy":
            np.save(file, logits.astype(dtype))
        else:
            np.savez(file, teacher=logits.astype(dtype), label=np.arange(6) % 5)
        seeds.append(file.getvalue())

    def use(data: bytes) -> None:
        path = tmp_path / "a"
        path.unlink(missing_ok=True)  # one that is mapped must not change
        path.write_bytes(data)
        found = read_logits(path, None, None)
        assert found.logits.ndim == 3
        torch.tensor(class_ids(found.labels))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Reading `.npy`", UserWarning)  # numpy's, of a file that Python 2 wrote
        _fuzz(seeds, use)


def test_small_files_take_little_memory(tmp_path: Path) -> None:
    """Files of at most a few MB on disk that say, or unpack to, hundreds of MB or gigabytes."""
    script = Path(__file__).with_name("bombs.py")
    ended = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    told = {name: (said, grown) for name, said, grown in map(json.loads, ended.stdout.splitlines())}
    assert len(told) == 13
    for name, (said, grown) in told.items():
        assert grown < 150, (name, said, grown)  # MB
        assert (said == "read") == (name == "an unused array of 256 MB"), (name, said)
