"""Images as PNG files of a few kilobytes, for a page."""

import io
import math

import numpy as np
from PIL import Image

_LONGEST = 192
_LEAST = 8


def picture_png(image: np.ndarray, longest: int = _LONGEST) -> bytes:
    """An image, uint8 [height, width, 3], as a PNG file; one larger than `longest` pixels is reduced to that."""
    return _png(_reduced(Image.fromarray(image), longest))


def picture_size(png: bytes) -> tuple[int, int]:
    """Width and height in pixels."""
    with Image.open(io.BytesIO(png)) as picture:
        return picture.size


def shrunk(png: bytes, part: float) -> bytes:
    """The same picture with about this part of its bytes, in 0..1; never of less than a few pixels."""
    with Image.open(io.BytesIO(png)) as picture:
        longest = max(picture.size)
        return _png(_reduced(picture.convert("RGB"), max(_LEAST, int(0.9 * longest * math.sqrt(part)))))


def _reduced(picture: Image.Image, longest: int) -> Image.Image:
    if max(picture.size) <= longest:
        return picture
    factor = longest / max(picture.size)
    width, height = (max(1, round(side * factor)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()
