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
_MASK_FORMATS = ("PNG",)
_MASK_MODES = ("1", "L", "P", "I", "I;16", "I;16B")
_SPREAD = {"L;2": 85, "L;4": 17}
"""What Pillow multiplies grey of few bits by, as it reads it: such masks hold ids."""
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
    what = f"image {key!r}"
    with _opened(what, file, _FORMATS) as data:
        if side is None and (decoded := decode_jpeg(data, _most_pixels())) is not None:
            return decoded
        data.seek(0)
        with _QUIET:
            image = _bounded(what, data, _FORMATS)
            if side is not None:
                image.draft("RGB", (side, side))
            image.load()
            image = image if image.mode == "RGB" else image.convert("RGB")  # what it was made of is not kept
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        for top in range(0, image.height, _STRIP):  # Pillow copies all that is taken at once twice
            strip = image.crop((0, top, image.width, min(top + _STRIP, image.height)))
            pixels[top : top + _STRIP] = np.asarray(strip)
        return pixels


def decode_mask(key: str, file: Path | bytes) -> np.ndarray:
    """Decode a mask's file to the ids that it holds, uint8 or uint16 [height, width].

    Args:
        key: of its image, for messages.
        file: a path, or a file's bytes: PNG of one channel, grey of 1 to 16 bits or indices into a palette, of at most
            as many pixels as `decode_image` decodes.

    Raises:
        SourceError: it cannot be decoded, has colours, is no plain file, or is too large; the message names the key.
        UsageError: GDKD_CACHE_MOST_PIXELS is no number.
    """
    what = f"mask of {key!r}"
    with _opened(what, file, _MASK_FORMATS) as data:
        with _QUIET:
            image = _bounded(what, data, _MASK_FORMATS)
            if image.mode not in _MASK_MODES:
                raise SourceError(
                    f"{what} has the channels {image.mode}; it must be a PNG of one channel, grey or with a palette"
                )
            spread = _SPREAD.get(str(image.tile[0][3]), 1)  # pyright: ignore[reportAttributeAccessIssue]
            image.load()
        ids = np.array(image).astype(np.uint16 if image.mode.startswith("I") else np.uint8, copy=False)
        return ids // spread if spread > 1 else ids


@contextmanager
def _opened(what: str, file: Path | bytes, formats: tuple[str, ...]) -> Iterator[io.BytesIO | io.BufferedReader]:
    """An image file's bytes; what goes wrong with them is told in a line."""
    try:
        kind = what.partition(" ")[0]
        with io.BytesIO(file) if isinstance(file, bytes) else open_plain(file, kind, SourceError) as data:
            size = len(file) if isinstance(file, bytes) else os.fstat(data.fileno()).st_size
            if size > MOST_IMAGE_BYTES:
                raise SourceError(f"{what} has {size:,} bytes; at most {MOST_IMAGE_BYTES:,} are read: shrink it")
            yield cast(io.BytesIO | io.BufferedReader, data)
    except GdkdCacheError:
        raise
    except Image.DecompressionBombError:
        raise SourceError(f"{what} has more pixels than Pillow opens; shrink it") from None
    except Exception as error:  # decoders raise anything of a damaged file, from IndexError to MemoryError
        unknown = isinstance(error, UnidentifiedImageError)
        reason = f"it is none of {', '.join(formats)}" if unknown and len(formats) > 1 else first_line(error)
        reason = f"it is no {formats[0]}" if unknown and len(formats) == 1 else reason
        raise SourceError(f"{what} cannot be decoded ({reason}); replace or remove that file") from None


def _bounded(what: str, data: io.BytesIO | io.BufferedReader, formats: tuple[str, ...]) -> Image.Image:
    """The image, not yet decoded, and not too large for that."""
    image = Image.open(data, formats=formats)
    pixels, most = image.width * image.height, _most_pixels()
    if image.format == "WEBP":
        most //= 2
    if pixels > most:
        raise SourceError(
            f"{what} has {pixels:,} pixels; at most {most:,} are decoded: shrink it, or set {_MOST_PIXELS}"
        )
    return image


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
