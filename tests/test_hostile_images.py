"""Image files that are wrong or hostile: one line that names the image, and no program is run."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from inputs import encoded, refused
from PIL import Image

from gdkd_cache.data.images.decoding import decode_image
from gdkd_cache.errors import SourceError, UsageError


def png_of(width: int, height: int) -> bytes:
    """A PNG that says it is so large and holds no pixel."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (header, data))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF", "GIF", "WEBP", "JPEG"])
def test_formats_that_are_meant(kind: str) -> None:
    data = encoded(kind)
    expected = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decode_image("a", data), expected)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "CMYK", "F"])
def test_modes(mode: str) -> None:
    data = encoded("TIFF", mode)
    assert np.array_equal(decode_image("a", data), np.array(Image.open(io.BytesIO(data)).convert("RGB")))


def test_tall_images_are_whole() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1000, 3, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    assert np.array_equal(decode_image("a", file.getvalue()), pixels)


_OTHERS = {kind: encoded(kind) for kind in ("EPS", "TGA", "PCX", "DDS", "SGI", "ICO", "JPEG2000")} | {
    "BLP": encoded("BLP", "P"),
    "AVIF": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(50),
    "BLP with a wrong size": encoded("BLP", "P")[:60],
    "EPS behind a DOS header": b"\xc5\xd0\xd3\xc6" + bytes(26) + encoded("EPS"),
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
    refused(lambda: decode_image("a", path), "image 'a' cannot be decoded .it is none of JPEG, PNG", SourceError)
    assert not (tmp_path / "ran").exists()


def test_pixels_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before they are decoded, and without a warning, which is an error here."""
    refused(
        lambda: decode_image("a", png_of(13300, 13300)), "'a' has 176,890,000 pixels; at most 40,000,000 are decoded"
    )
    refused(lambda: decode_image("a", png_of(10_000, 10_000)), "set GDKD_CACHE_MOST_PIXELS")
    refused(lambda: decode_image("a", png_of(2**31 - 1, 2**31 - 1)), "has more pixels than Pillow opens")
    refused(lambda: decode_image("a", png_of(6000, 6000)), "cannot be decoded")  # not for its size
    monkeypatch.setenv("GDKD_CACHE_MOST_PIXELS", "150")
    assert decode_image("a", encoded("PNG")).shape == (9, 12, 3)
    refused(lambda: decode_image("a", encoded("WEBP")), "has 108 pixels; at most 75 are decoded")
    monkeypatch.setenv("GDKD_CACHE_MOST_PIXELS", "lots")
    refused(lambda: decode_image("a", encoded("PNG")), "GDKD_CACHE_MOST_PIXELS is 'lots'", UsageError)


def test_pillows_warnings_are_not_shown() -> None:
    """They are errors here."""
    assert decode_image("a", encoded("PNG", "P", transparency=b"\0\1")).shape == (9, 12, 3)
