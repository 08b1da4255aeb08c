"""Small sources of images whose colours are their masks' classes."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from gdkd_cache.data.masks import IGNORE, MaskFiles, id_table
from gdkd_cache.data.source import ArraySource, EncodedSource, FullSource

CLASSES = ("road", "car", "tree", "sky", "wall", "pole", "sign")
IGNORED_ID = 200


def random_mask(rng: np.random.Generator, classes: int, height: int, width: int) -> np.ndarray:
    """Blocks of 4x4 pixels of random classes, some of them ignored: int16 [height, width]."""
    blocks = rng.integers(-1, classes, (-(-height // 4), -(-width // 4)))
    ids = np.where(blocks < 0, IGNORE, blocks).astype(np.int16)
    return ids.repeat(4, 0).repeat(4, 1)[:height, :width].copy()


def coloured(mask: np.ndarray) -> np.ndarray:
    """An image whose colours tell the class, uint8 [height, width, 3]; ignored pixels are white."""
    ids = np.where(mask == IGNORE, 12, mask)
    return np.stack([15 + 20 * ids, 30 + 15 * ids, 3 + 21 * ids], axis=-1).astype(np.uint8)


def png(pixels: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **options)
    return file.getvalue()


def mask_png(mask: np.ndarray) -> bytes:
    """As a file in which `IGNORED_ID` is ignored."""
    return png(np.where(mask == IGNORE, IGNORED_ID, mask).astype(np.uint8))


def masked(
    rows: int,
    *,
    heights: tuple[int, ...] = (24,),
    in_memory: bool = False,
    change: tuple[int, Callable[[np.ndarray], np.ndarray]] | None = None,
) -> FullSource:
    """A source of 33 pixels across, of such heights in turn; `change` is made to a row's mask alone."""
    rng = np.random.default_rng(7)
    masks = [random_mask(rng, len(CLASSES), heights[row % len(heights)], 33) for row in range(rows)]
    images = [coloured(mask) for mask in masks]
    if change is not None:
        masks[change[0]] = change[1](masks[change[0]])
    keys = [str(row) for row in range(rows)]
    about: dict[str, Any] = {"name": "masked", "keys": keys, "labels": np.zeros(rows, np.int64), "classes": CLASSES}
    about["masks"] = MaskFiles(
        keys=keys, files=[mask_png(mask) for mask in masks], ids=id_table(range(len(CLASSES)), [IGNORED_ID])
    )
    if in_memory:
        return ArraySource(images=np.stack(images).transpose(0, 3, 1, 2).copy(), **about)
    return EncodedSource(files=[png(image) for image in images], **about)
