"""JPEG files decoded by simplejpeg, where it is installed and gives Pillow's pixels: faster, and in threads."""

import importlib
import io
import logging
from functools import lru_cache
from types import ModuleType

import numpy as np
from PIL import Image

from gdkd_cache.limits import MOST_IMAGE_PIXELS

_LOG = logging.getLogger(__name__)
_BEGINNING = b"\xff\xd8\xff"
_MOST_BYTES = 2**25
"""Of a file that is read whole; Pillow reads larger ones bit by bit."""
_COLOURS = ("YCbCr", "Gray")
_SUBSAMPLINGS = ("444", "422", "420", "Gray")


def decode_jpeg(data: io.BytesIO | io.BufferedReader, most_pixels: int) -> np.ndarray | None:
    """The pixels of an open JPEG file, uint8 RGB [height, width, 3]; None where they are left to Pillow.

    That is any other file, one that is damaged, has more than `most_pixels`, or is coded in an uncommon way; and all of
    them where simplejpeg is not installed or does not decode as Pillow does.
    """
    simplejpeg = _simplejpeg()
    if simplejpeg is None or data.read(len(_BEGINNING)) != _BEGINNING:
        return None
    data.seek(0)
    content = data.read(_MOST_BYTES + 1)
    return None if len(content) > _MOST_BYTES else _decoded(simplejpeg, content, most_pixels)


def _decoded(simplejpeg: ModuleType, content: bytes, most_pixels: int) -> np.ndarray | None:
    try:
        height, width, colours, subsampling = simplejpeg.decode_jpeg_header(content)
        if (
            height * width > min(most_pixels, MOST_IMAGE_PIXELS)
            or colours not in _COLOURS
            or subsampling not in _SUBSAMPLINGS
        ):
            return None
        return simplejpeg.decode_jpeg(content, "RGB")
    except Exception:  # of a damaged file, in any way: Pillow says what is wrong, or takes it
        return None


@lru_cache(maxsize=1)
def _simplejpeg() -> ModuleType | None:
    """The library, if it gives Pillow's pixels for each way of coding that it is used for."""
    try:
        simplejpeg = importlib.import_module("simplejpeg")
    except ImportError:
        return None
    rows, columns = np.mgrid[:45, :61]
    noise = np.random.default_rng(0).integers(0, 64, (45, 61, 3))
    image = Image.fromarray((np.stack([rows * 4, columns * 3, rows * columns], axis=-1) + noise).astype(np.uint8))
    ways = [("L", 0), *(("RGB", subsampling) for subsampling in range(3))]
    for mode, subsampling in ways:
        for progressive in (False, True):
            file = io.BytesIO()
            image.convert(mode).save(file, "JPEG", quality=85, subsampling=subsampling, progressive=progressive)
            found = _decoded(simplejpeg, file.getvalue(), MOST_IMAGE_PIXELS)
            if found is None or not np.array_equal(found, np.asarray(Image.open(file).convert("RGB"))):
                _LOG.info("simplejpeg does not decode as Pillow does, and is not used")
                return None
    return simplejpeg
