"""Images, shards, recipes and arrays that are wrong or hostile: one line that names the thing, and nothing is run."""

import io
import os
import socket
import struct
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gdkd_cache_cli.main import main
from PIL import Image

import gdkd_cache as gc
from gdkd_cache import open_source
from gdkd_cache.building.arrays import read_logits
from gdkd_cache.data.decoding import decode_image
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import GdkdCacheError, MismatchError, SourceError, UsageError

_PIXELS = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)


def _encoded(kind: str, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(_PIXELS).convert(mode).save(file, kind, **options)
    return file.getvalue()


def _png_of(width: int, height: int) -> bytes:
    """A PNG that says it is so large and holds no pixel."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (header, data))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _refused(call: Callable[[], object], said: str | None, kind: type[GdkdCacheError] = GdkdCacheError) -> None:
    with pytest.raises(kind, match=said) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert " object at 0x" not in message
    assert len(message) < 600


# Images


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF", "GIF", "WEBP", "JPEG"])
def test_formats_that_are_meant(kind: str) -> None:
    data = _encoded(kind)
    expected = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decode_image("a", data), expected)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "CMYK", "F"])
def test_modes(mode: str) -> None:
    data = _encoded("TIFF", mode)
    assert np.array_equal(decode_image("a", data), np.array(Image.open(io.BytesIO(data)).convert("RGB")))


def test_tall_images_are_whole() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1000, 3, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    assert np.array_equal(decode_image("a", file.getvalue()), pixels)


_OTHERS = {kind: _encoded(kind) for kind in ("EPS", "TGA", "PCX", "DDS", "SGI", "ICO", "JPEG2000")} | {
    "BLP": _encoded("BLP", "P"),
    "AVIF": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(50),
    "BLP with a wrong size": _encoded("BLP", "P")[:60],
    "EPS behind a DOS header": b"\xc5\xd0\xd3\xc6" + bytes(26) + _encoded("EPS"),
}


@pytest.mark.parametrize("kind", _OTHERS)
def test_other_formats_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Whatever the name says; Pillow would run `gs` for an EPS."""
    gs = tmp_path / "gs"
    gs.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    path = tmp_path / "a.png"
    path.write_bytes(_OTHERS[kind])
    _refused(lambda: decode_image("a", path), "image 'a' cannot be decoded .it is none of JPEG, PNG", SourceError)
    assert not (tmp_path / "ran").exists()


def test_pixels_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before they are decoded, and without a warning, which is an error here."""
    _refused(
        lambda: decode_image("a", _png_of(13300, 13300)), "'a' has 176,890,000 pixels; at most 40,000,000 are decoded"
    )
    _refused(lambda: decode_image("a", _png_of(10_000, 10_000)), "set GDKD_CACHE_MOST_PIXELS")
    _refused(lambda: decode_image("a", _png_of(2**31 - 1, 2**31 - 1)), "has more pixels than Pillow opens")
    _refused(lambda: decode_image("a", _png_of(6000, 6000)), "cannot be decoded")  # not for its size
    monkeypatch.setenv("GDKD_CACHE_MOST_PIXELS", "150")
    assert decode_image("a", _encoded("PNG")).shape == (9, 12, 3)
    _refused(lambda: decode_image("a", _encoded("WEBP")), "has 108 pixels; at most 75 are decoded")
    monkeypatch.setenv("GDKD_CACHE_MOST_PIXELS", "lots")
    _refused(lambda: decode_image("a", _encoded("PNG")), "GDKD_CACHE_MOST_PIXELS is 'lots'", UsageError)


def test_pillows_warnings_are_not_shown() -> None:
    """They are errors here."""
    assert decode_image("a", _encoded("PNG", "P", transparency=b"\0\1")).shape == (9, 12, 3)


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
    _refused(lambda: open_recipe(str(path), 8, 8), f"recipe {path} {said}", UsageError)
    _refused(lambda: read_logits(path, None, None), f"logits {path} {said}", SourceError)
    np.save("logits.npy", np.zeros((1, 3, 4)))
    _refused(lambda: read_logits(Path("logits.npy"), path, None), f"labels {path} {said}", SourceError)
    _refused(lambda: read_logits(Path("logits.npy"), None, path), f"keys {path} {said}", SourceError)
    _refused(lambda: decode_image("a", path), f"image {path} {said}", SourceError)
    _refused(lambda: open_source(f"wds:{path}"), f"{path} {said}", SourceError)
    if kind != "nothing":
        path.rename(tmp_path / "classes.txt")
        _shard(tmp_path / "b.tar")
        _refused(lambda: open_source(f"wds:{tmp_path}/b.tar"), f"list .*classes.txt {said}", SourceError)
        (tmp_path / "classes.txt").rename(tmp_path / "wnids.txt")
        _refused(lambda: open_source(f"tiny-imagenet:{tmp_path}"), f"list .*wnids.txt {said}", SourceError)


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """Linux allows any bytes."""
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "1.png").write_bytes(_encoded("PNG"))
    odd = os.fsencode(tmp_path / "train" / "cat") + b"/\xff.png"
    Path(os.fsdecode(odd)).write_bytes(_encoded("PNG"))
    _refused(
        lambda: open_source(f"imagefolder:{tmp_path}"), r"'train/cat/\\udcff.png' is no text in UTF-8", SourceError
    )
    os.unlink(odd)  # noqa: PTH108
    Path(tmp_path / "train" / "cat").rename(os.fsdecode(os.fsencode(tmp_path / "train") + b"/c\xe4t"))
    result = CliRunner().invoke(
        main, f"train --loss ce --data imagefolder:{tmp_path} --student cnn-s --epochs 1 --out o".split()
    )
    assert (result.exit_code, result.exception.__class__) == (1, SystemExit)
    assert "is no text in UTF-8" in result.stderr


# Shards


def _shard(path: Path, samples: dict[str, bytes] | None = None) -> bytes:
    default = {"a.png": _encoded("PNG"), "a.cls": b"0", "b.png": _encoded("PNG"), "b.cls": b"1"}
    with tarfile.open(path, "w") as tar:
        for name, data in (default if samples is None else samples).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path.read_bytes()


@pytest.mark.parametrize("stream", [False, True])
def test_cut_shards_are_refused(tmp_path: Path, stream: bool) -> None:
    """Wherever they are cut: between two members, too, where tarfile sees the end."""
    path = tmp_path / "a.tar"
    whole = _shard(path)
    assert len(open_source(f"wds:{path}", stream=stream)) == 2
    end = len(whole.rstrip(b"\0"))
    end += -end % 512  # of the last member
    for cut in range(0, end + 1024, 512):
        path.write_bytes(whole[:cut])
        _refused(lambda: open_source(f"wds:{path}", stream=stream), f"wds: {path} is no intact tar file", SourceError)
    path.write_bytes(whole[:end])
    _refused(
        lambda: open_source(f"wds:{path}", stream=stream),
        rf"ends at byte {end:,} without an end marker, .*append 1024 zero bytes.*copy it again",
    )
    path.write_bytes(whole[:end] + bytes(1024))  # as the message says
    assert len(open_source(f"wds:{path}", stream=stream)) == 2


def test_the_commands_refuse_a_cut_shard(tmp_path: Path, weights: Path) -> None:
    path = tmp_path / "a.tar"
    whole = _shard(path)
    path.write_bytes(whole[: whole.index(b"b.png")])
    for line in (
        f"train --loss ce --data wds:{path} --eval-data digits --student cnn-s --epochs 1 --out {tmp_path}/o",
        f"build --data wds:{path} --teacher cnn-s --weights {weights} --views 1 --out {tmp_path}/c",
    ):
        result = CliRunner().invoke(main, line.split())
        assert result.exit_code == 1
        assert f"{path} is no intact tar file: it ends at byte 2,048 without an end marker" in result.stderr


def test_the_rest_of_a_shard_is_not_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    whole = _shard(path)
    second = whole.index(b"b.png")
    path.write_bytes(whole[:second] + b"?" + whole[second + 1 :])  # its checksum is wrong now
    _refused(lambda: open_source(f"wds:{path}"), f"what begins at byte {second:,} is no header of a member")
    path.write_bytes(whole + whole)
    _refused(lambda: open_source(f"wds:{path}"), "goes on after its end at byte")
    path.write_bytes(whole[:second] + bytes(1024) + whole[second + 1024 :])
    _refused(lambda: open_source(f"wds:{path}"), f"goes on after its end at byte {second:,}")


_PNG = _encoded("PNG")


@pytest.mark.parametrize(
    ("samples", "classes", "said"),
    [
        ({"a.png": _PNG, "a.cls": b"60000000"}, None, "sample 'a' has label 60000000; class ids are below 131072"),
        ({"a.png": _PNG, "a.cls": b"9" * 30}, None, "sample 'a' has label 9+; class ids"),
        ({"a.png": _PNG, "a.cls": b"9" * 5000}, None, "a number in .cls"),
        ({"a.png": _PNG, "a.cls": b"1"}, b"\n" * 200_000, "more than 131072 lines"),
        ({"a.png": _PNG, "a.cls": b"1"}, b"ant\nb\xffe\n", "classes.txt is no text in UTF-8: byte 5"),
        ({"\udcff.png": _PNG, "\udcff.cls": b"1"}, None, r"'\\udcff' is no text in UTF-8"),
        ({"a\nb.png": _PNG, "a\nb.cls": b"1"}, None, r"'a\\nb' is empty or holds a line break"),
        ({"a.png": _PNG, "a.PNG": _PNG, "a.cls": b"1"}, None, "a.tar holds 'a' with png twice"),
    ],
)
def test_wrong_samples(tmp_path: Path, samples: dict[str, bytes], classes: bytes | None, said: str) -> None:
    _shard(tmp_path / "a.tar", samples)
    if classes is not None:
        (tmp_path / "classes.txt").write_bytes(classes)
    _refused(lambda: open_source(f"wds:{tmp_path}/a.tar"), said, SourceError)


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"0"])
@pytest.mark.parametrize("size", [-(2**40), 3 * 2**30, 2**80])
def test_sizes_in_headers_are_claims(tmp_path: Path, kind: bytes, size: int) -> None:
    path = tmp_path / "a.tar"
    member = tarfile.TarInfo("a.png")
    header = bytearray(member.tobuf())
    header[156:157] = kind
    header[124:136] = size.to_bytes(12, "big", signed=True) if size < 0 else b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(header + _shard(path))
    os.truncate(path, 4 * 2**30)  # as many bytes as it says, all holes
    _refused(lambda: open_source(f"wds:{path}"), "is no intact tar file", SourceError)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("a-{000..001.tar", "braces must be balanced"),
        ("a-{0..999999999999}.tar", "must name 1 to 131072 shards"),
        ("a-{5..-9" + "9" * 30 + "}.tar", "must name 1 to"),
        ("{0..9}" * 6, "must name 1 to"),
        ("{" * 2000 + "}" * 2000, "braces must be balanced|must name"),
        ("{1" + "0" * 5000 + "..2}", "braces must be balanced"),
    ],
)
def test_wrong_patterns(pattern: str, said: str) -> None:
    _refused(lambda: open_source(f"wds:{pattern}"), said, UsageError)


@pytest.mark.parametrize("spec", ["..:x", "os:..", ":x", "torch.nn:Linear:3", "builtins:dict:3", "os:system", "a.:b"])
def test_code_that_is_no_source(spec: str) -> None:
    _refused(lambda: open_source(spec), "data is|is no source|path after the colon|cannot be imported")


# Recipes

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
    _refused(lambda: open_recipe(str(path), 32, 32), f"recipe {path}", UsageError)


@pytest.mark.parametrize(
    "spec",
    ["compat:..:x", "compat:torch.nn:Linear", "compat:torchvision.transforms.v2:Resize", "compat:os:system",
     "compat:a..b:c", "compat::", "compat:torch", f"crop-flip:size={'9' * 30}", f"imagenet-eval:size={'9' * 400}",
     f"imagenet-eval:resize={'9' * 30}", f"crop-flip:padding=-{'9' * 30}", "imagenet:size=0"],
)  # fmt: skip
def test_hostile_recipe_specs(spec: str) -> None:
    _refused(lambda: open_recipe(spec, 32, 32), None, UsageError)


# Arrays

_LOGITS = np.random.default_rng(0).normal(size=(1, 20, 9)).astype(np.float32)
_LABELS = np.arange(20) % 9
_KEYS = [f"k{i}" for i in range(20)]


def test_logits_of_any_float_type(tmp_path: Path) -> None:
    """Big-endian, long double and read-only ones are the same numbers."""
    fixed = _LOGITS.copy()
    fixed.flags.writeable = False
    given = [_LOGITS, _LOGITS.astype(">f4"), _LOGITS.astype(np.longdouble), _LOGITS.astype(">f8"), fixed]
    labels = [_LABELS, _LABELS.astype(">i4"), _LABELS.astype(np.float32), _LABELS.tolist(), _LABELS.astype(np.uint64)]
    digests = {
        gc.pack(tmp_path / str(i), logits, keys=_KEYS, labels=own, codec="dense").digest
        for i, (logits, own) in enumerate(zip(given, labels, strict=True))
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": np.full(20, 0.7)}, "labels are float64, not all whole numbers"),
        ({"labels": np.full(20, np.nan)}, "labels are float64, not all whole numbers"),
        ({"labels": np.array(["1"] * 20)}, "labels are <U1, not all whole numbers"),
        ({"labels": []}, r"labels are \[0\]; give 20 class ids"),
        ({"labels": [10**30] * 20}, "labels are object, not all whole numbers"),
        ({"labels": np.full(20, 2**63, np.uint64)}, "labels are from -"),
        ({"keys": ["\udcff", *_KEYS[1:]]}, r"key '\\udcff' is no text"),
        ({"classes": ["\ud800", *"abcdefgh"]}, r"class name '\\ud800' is no text"),
        ({"logits": _LOGITS.astype("U9")}, "a view's logits are <U9; give floats"),
        ({"logits": _LOGITS.astype(complex)}, "a view's logits are complex128; give floats"),
        ({"logits": _LOGITS.astype(np.float64) * 1e300}, "hold NaN or infinity"),
        ({"logits": np.zeros((1, 20, 2**17 + 1), np.float16)}, "give 2 to 131072"),
    ],
)
def test_wrong_input_to_pack(tmp_path: Path, change: dict[str, object], said: str) -> None:
    good: dict[str, object] = {"logits": _LOGITS, "keys": _KEYS, "labels": _LABELS}
    _refused(lambda: gc.pack(tmp_path / "a", **(good | change)), said, UsageError)  # pyright: ignore[reportArgumentType]


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    return file.getvalue()


def test_what_is_not_needed_is_not_read(tmp_path: Path) -> None:
    """Pickles among it."""
    path = tmp_path / "a.npz"
    path.write_bytes(_npz(teacher=_LOGITS, label=_LABELS, notes=np.array([{}], dtype=object)))
    read = read_logits(path, None, None)
    assert np.array_equal(read.logits, _LOGITS)
    assert np.array_equal(read.labels, _LABELS)
    path.write_bytes(_npz(teacher=_LOGITS, labels=np.array([{}], dtype=object)))
    _refused(lambda: read_logits(path, None, None), "labels .*a.npz is no .npy or .npz of numbers", SourceError)
    path.write_bytes(_npz(others=_LOGITS))
    _refused(lambda: read_logits(path, None, None), "hold no array teacher or logits; name yours so", SourceError)


@pytest.mark.parametrize(
    "data",
    [
        _npy(_LOGITS).replace(b"(1, 20, 9)", b"(9, 20, 9)"),
        _npy(_LOGITS).replace(b"(1, 20, 9)", b"(1, 20, 1)"),
        _npy(_LOGITS).replace(b"(1, 20, 9)", b"(1,-20,-9)"),
        _npy(_LOGITS).replace(b"(1, 20, 9), }", b"(1, 2**62,9),}"),
        _npy(_LOGITS).replace(b"'<f4'", b"'|O' "),
        _npy(_LOGITS).replace(b"'<f4'", b"'<f7'"),
        _npy(_LOGITS).replace(b"{'descr'", b"[[[[[[[["),
        _npy(_LOGITS)[:-1],
        _npy(_LOGITS)[:90],
        _npz(teacher=_LOGITS).replace(b"(1, 20, 9)", b"(9, 20, 9)"),
        _npz(teacher=_LOGITS)[:-30],
        _npz(teacher=_LOGITS).replace(_LOGITS.tobytes()[:40], bytes(40)),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
        b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 9000,
        b"PK\x03\x04",
        b"",
    ],
)
def test_headers_that_lie(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(data)
    _refused(lambda: read_logits(path, None, None), f"logits {path} is no .npy or .npz of numbers: ", SourceError)


def test_wrong_arrays_from_the_command_line(tmp_path: Path) -> None:
    def run(said: str, code: int, **files: bytes) -> None:
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        line = f"pack {tmp_path}/logits {tmp_path}/out --labels {tmp_path}/labels --keys {tmp_path}/keys"
        result = CliRunner().invoke(main, line.split())
        assert (result.exit_code, result.exception.__class__) == (code, SystemExit)
        assert said in result.stderr
        assert result.stderr.count("\n") <= 1

    good = {"logits": _npy(_LOGITS), "labels": _npy(_LABELS), "keys": "\n".join(_KEYS).encode()}
    run("keys are no text in UTF-8: byte 1", 1, **good | {"keys": b"a\xff\n"})
    run("labels are float64, not all whole numbers", 2, **good | {"labels": _npy(_LABELS + 0.7)})
    run("labels are <U1, not all whole numbers", 2, **good | {"labels": _npy(_LABELS.astype("U1"))})
    run("labels are [0]; give 20 class ids", 2, **good | {"labels": _npy(np.zeros(0))})
    run("it needs floats [view, row, class]", 1, **good | {"logits": _npy(np.zeros((0, 20, 9)))})
    run("it needs floats [view, row, class]", 1, **good | {"logits": _npy(np.zeros((1, 20, 9), int))})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keys", "labels", "logits"]


@pytest.mark.parametrize(
    ("classes", "said"), [("abcdefghi", "class 0 is a in .*, which has 9 classes"), ("012345678x", "class 9 is x in")]
)
def test_other_classes_are_named(digits: ArraySource, tmp_path: Path, classes: str, said: str) -> None:
    other = replace(digits, labels=np.zeros(256, np.int64), classes=tuple(classes))
    options = gc.TrainOptions(student="cnn-s", out=tmp_path, loss="ce", epochs=1)
    _refused(lambda: gc.train(options, digits, other), said, MismatchError)
