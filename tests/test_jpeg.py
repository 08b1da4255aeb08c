"""JPEG files decoded by simplejpeg give Pillow's pixels, or are left to Pillow."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gdkd_cache.data.images import jpeg
from gdkd_cache.data.images.decoding import decode_image
from gdkd_cache.data.images.jpeg import decode_jpeg
from gdkd_cache.errors import SourceError


def _image(height: int, width: int, seed: int = 0) -> Image.Image:
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)
    noise = generator.integers(-30, 30, (height, width, 3))
    return Image.fromarray(np.clip(coarse[:height, :width] + noise, 0, 255).astype(np.uint8))


def _file(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def _by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    mode=st.sampled_from(["RGB", "RGB", "L"]),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    flags=st.fixed_dictionaries({"progressive": st.booleans(), "optimize": st.booleans()}),
    restarts=st.integers(0, 3),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=200, deadline=None)
def test_the_same_pixels(
    size: tuple[int, int],
    mode: str,
    quality: int,
    subsampling: str,
    flags: dict[str, bool],
    restarts: int,
    seed: int,
) -> None:
    image = _image(*size, seed).convert(mode)
    data = _file(image, quality=quality, subsampling=subsampling, restart_marker_rows=restarts, **flags)
    found = decode_jpeg(io.BytesIO(data), 10**6)
    assert found is not None
    assert np.array_equal(found, _by_pillow(data))


def _orientation() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


_TAKEN = {
    "a turned one": _file(_image(40, 50), exif=_orientation()),
    "one with a profile": _file(_image(40, 50), icc_profile=bytes(3000)),
    "several in one": _file(_image(40, 50)) + _file(_image(8, 8)),
}
_LEFT = {
    "CMYK": _file(_image(40, 50).convert("CMYK")),
    "RGB": _file(_image(40, 50), keep_rgb=True),
    "PNG": b"\x89PNG",
    "empty": b"",
}


@pytest.mark.parametrize("kind", [*_TAKEN, *_LEFT])
def test_uncommon_files(kind: str, tmp_path: Path) -> None:
    data = (_TAKEN | _LEFT)[kind]
    assert (decode_jpeg(io.BytesIO(data), 10**6) is None) == (kind in _LEFT)
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    for file in (data, path):
        if len(data) > 4:
            assert np.array_equal(decode_image("a", file), _by_pillow(data))
        else:
            with pytest.raises(SourceError, match="'a' cannot be decoded"):
                decode_image("a", file)


@given(cut=st.integers(0, 1000), at=st.integers(0, 999), value=st.integers(0, 255), side=st.sampled_from([None, 8]))
@settings(max_examples=150, deadline=None)
def test_damaged_files_are_as_pillow_has_them(cut: int, at: int, value: int, side: int | None) -> None:
    """Either refused, or the pixels that Pillow gives."""
    whole = bytearray(_file(_image(24, 24), quality=60))
    whole[at % len(whole)] = value
    data = bytes(whole[: len(whole) - cut % 30])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gdkd_cache.data.images.decoding.decode_jpeg", lambda *_: None)
        expected = _outcome(data, side)
    found = _outcome(data, side)
    assert found == expected or expected is None  # simplejpeg does not read what is no part of the pixels


def _outcome(data: bytes, side: int | None) -> tuple[tuple[int, ...], bytes] | None:
    try:
        image = decode_image("a", data, side)
    except SourceError:
        return None
    return image.shape, image.tobytes()


def test_bounds_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    data = _file(_image(40, 50))
    monkeypatch.setenv("GDKD_CACHE_MOST_PIXELS", "1999")
    with pytest.raises(SourceError, match="has 2,000 pixels; at most 1,999 are decoded"):
        decode_image("a", data)
    monkeypatch.delenv("GDKD_CACHE_MOST_PIXELS")
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_: pytest.fail("decoded"))
    at = data.index(b"\xff\xc0") + 5
    huge = data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :]
    with pytest.raises(SourceError, match=r"has 4,294,836,225 pixels|more pixels than Pillow opens"):
        decode_image("a", huge)
    monkeypatch.setattr(jpeg, "_MOST_BYTES", len(data) - 1)
    assert np.array_equal(decode_image("a", data), _by_pillow(data))


@pytest.fixture
def forgotten() -> Iterator[None]:
    """What was found out of simplejpeg is found out again."""
    jpeg._simplejpeg.cache_clear()
    yield
    jpeg._simplejpeg.cache_clear()


def _other() -> ModuleType:
    """A library that rounds otherwise."""
    module = ModuleType("simplejpeg")
    vars(module).update(vars(simplejpeg) | {"decode_jpeg": lambda data, _: _by_pillow(data) ^ 1})
    return module


@pytest.mark.parametrize("found", [None, _other()])
def test_where_it_is_not_there_or_rounds_otherwise(
    forgotten: None, monkeypatch: pytest.MonkeyPatch, found: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setitem(sys.modules, "simplejpeg", found)
    data = _file(_image(40, 50))
    for _ in range(2):
        assert decode_jpeg(io.BytesIO(data), 10**6) is None
        assert np.array_equal(decode_image("a", data), _by_pillow(data))
    assert caplog.text.count("does not decode as Pillow does") == (found is not None)
