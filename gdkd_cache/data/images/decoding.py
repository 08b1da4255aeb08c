"""Image files to pixels: the only place that lets an image decoder near foreign bytes."""

import io
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image, UnidentifiedImageError

from gdkd_cache.data.images.jpeg import decode_jpeg
from gdkd_cache.errors import GdkdCacheError, SourceError, UsageError, first_line
from gdkd_cache.files import open_plain
from gdkd_cache.limits import MOST_IMAGE_BYTES, MOST_IMAGE_PIXELS

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF")
"""Those of the names that sources take for images, and GIF, which scraped data calls .jpg. Pillow knows many more,
some of which start other programs."""
_MOST_PIXELS = "GDKD_CACHE_MOST_PIXELS"
"""What raises the bound: in the environment, as workers inherit that however they are started."""
_STRIP = 256


def decode_image(key: str, file: Path | bytes, side: int | None = None) -> np.ndarray:
    """Decode an image file to uint8 RGB [height, width, 3].

    Args:
        key: for messages.
        file: a path, or a file's bytes: JPEG, PNG, WebP, BMP, PPM, PGM, TIFF or GIF (its first frame), of at most
            40 million pixels (WebP: half as many, as its decoder keeps four copies), so that a file cannot take much
            memory by saying that it is large. GDKD_CACHE_MOST_PIXELS in the environment says another bound.
        side: JPEG files are decoded at the smallest of 1, 1/2, 1/4 and 1/8 of their size whose shorter side has
            at least so many pixels; None decodes them whole.

    Raises:
        SourceError: it cannot be decoded, is no plain file, or is too large; the message names the key.
        UsageError: GDKD_CACHE_MOST_PIXELS is no number.
    """
    try:
        with _opened(key, file) as data:
            if side is None and (decoded := decode_jpeg(data, _most_pixels())) is not None:
                return decoded
            data.seek(0)
            image = _decoded(key, data, side)
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        for top in range(0, image.height, _STRIP):  # Pillow copies all that is taken at once twice
            strip = image.crop((0, top, image.width, min(top + _STRIP, image.height)))
            pixels[top : top + _STRIP] = np.asarray(strip)
    except GdkdCacheError:
        raise
    except Image.DecompressionBombError:
        raise SourceError(f"image {key!r} has more pixels than Pillow opens; shrink it") from None
    except Exception as error:  # decoders raise anything of a damaged file, from IndexError to MemoryError
        unknown = isinstance(error, UnidentifiedImageError)
        reason = f"it is none of {', '.join(_FORMATS)}" if unknown else first_line(error)
        raise SourceError(f"image {key!r} cannot be decoded ({reason}); replace or remove that file") from None
    return pixels


@contextmanager
def _opened(key: str, file: Path | bytes) -> Iterator[io.BytesIO | io.BufferedReader]:
    """An image file's bytes."""
    with io.BytesIO(file) if isinstance(file, bytes) else open_plain(file, "image", SourceError) as data:
        size = len(file) if isinstance(file, bytes) else os.fstat(data.fileno()).st_size
        if size > MOST_IMAGE_BYTES:
            raise SourceError(f"image {key!r} has {size:,} bytes; at most {MOST_IMAGE_BYTES:,} are read: shrink it")
        yield cast(io.BytesIO | io.BufferedReader, data)


def _decoded(key: str, data: io.BytesIO | io.BufferedReader, side: int | None) -> Image.Image:
    """The image, in RGB and in memory; what it was made of is not kept."""
    with _QUIET:
        image = Image.open(data, formats=_FORMATS)
        pixels, most = image.width * image.height, _most_pixels()
        if image.format == "WEBP":
            most //= 2
        if pixels > most:
            raise SourceError(
                f"image {key!r} has {pixels:,} pixels; at most {most:,} are decoded: shrink it, or set {_MOST_PIXELS}"
            )
        if side is not None:
            image.draft("RGB", (side, side))
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")


class _Quiet:
    """Silences Pillow's warnings: of sizes, for which we have our own bound, and of harmless things.

    Filters are the process's, not a thread's: the first thread that decodes sets them, the last one restores them.
    """

    def __init__(self) -> None:
        self._lock, self._depth = threading.Lock(), 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if not self._depth:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module="PIL")
            self._depth += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._depth -= 1
            if not self._depth:
                self._filters.__exit__(None, None, None)


_QUIET = _Quiet()


def _most_pixels() -> int:
    stated = os.environ.get(_MOST_PIXELS, str(MOST_IMAGE_PIXELS))
    if not (stated.isascii() and stated.isdigit() and len(stated) < 16):
        raise UsageError(f"{_MOST_PIXELS} is {stated!r}; it must be a number of pixels, such as {MOST_IMAGE_PIXELS}")
    return int(stated)
