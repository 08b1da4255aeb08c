"""The drawing of a contact sheet of masks: which class is where, as the mask and as the teacher say, side by side."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from gdkd_cache.data.masks import IGNORE
from gdkd_cache.report.pen import FAINT, FRAME, GAP, INK, LINE, PAPER, Pen, font, thumbnail, wrapped

_LONGEST = 384
_COLUMNS = ("image", "mask", "teacher", "teacher's confidence: black 0, white 1")
_LEGEND_WIDTH = 170
_IGNORED = (0, 0, 0)
_OVER = 0.6
"""How much of an overlay is the class's colour."""
_TURN = (5**0.5 - 1) / 2
"""Of the colour wheel, from one class to the next: colours of few classes lie far apart, and of many all differ."""


@dataclass(frozen=True, kw_only=True)
class ShownMask:
    """An image with its mask, and perhaps with what a teacher said of its cells.

    Attributes:
        name: what it is: a view, or the source's own.
        image: uint8 [height, width, 3].
        mask: int16 [height, width], class ids or `IGNORE`.
        classes: the teacher's first class of each cell, int64 [down, across]; None where there is no teacher.
        confidence: its probability, float [down, across].
    """

    name: str
    image: np.ndarray
    mask: np.ndarray
    classes: np.ndarray | None = None
    confidence: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class ShownMaskRow:
    """A row: its key, and its image as it was decoded and as some views, at least one of them."""

    key: str
    images: tuple[ShownMask, ...]


def draw_mask_sheet(rows: Sequence[ShownMaskRow], classes: Sequence[str], title: Sequence[str]) -> Image.Image:
    """Draw rows of views: a line for each, with the image, its mask over it, and what the teacher said of its cells.

    Args:
        rows: at least one.
        classes: class names in the order of class ids; those that are seen are in the legend.
        title: texts above it all, each on as many lines as it needs.

    Returns:
        An RGB picture; the same arguments give the same pixels.
    """
    shown = [(row.key, one) for row in rows for one in row.images]
    pictures = [_pictures(one) for _, one in shown]
    columns = max(map(len, pictures))
    width = max(_LEGEND_WIDTH, *(picture.width for line in pictures for picture in line))
    across, written = GAP + (width + GAP) * columns, font()
    lines = [line for text in title for line in wrapped(text, written, across - 2 * GAP)]
    legend = _seen([one for _, one in shown])
    abreast = max((across - GAP) // _LEGEND_WIDTH, 1)
    top = GAP + (len(lines) + -(-len(legend) // abreast) + 1) * LINE + 2 * GAP
    heights = [max(picture.height for picture in line) for line in pictures]
    sheet = Image.new("RGB", (across, top + sum(heights) + (LINE + 2 * GAP) * len(heights)), PAPER)
    pen = Pen(ImageDraw.Draw(sheet), width, written)
    for number, line in enumerate(lines):
        pen.text(GAP, GAP + number * LINE, line, width=across - 2 * GAP)
    for number, class_id in enumerate(legend):
        x, y = GAP + number % abreast * _LEGEND_WIDTH, GAP + (len(lines) + number // abreast) * LINE + GAP // 2
        pen.draw.rectangle((x, y + 3, x + 12, y + 14), class_colour(class_id), FAINT)
        name = "ignored" if class_id == IGNORE else classes[class_id]
        pen.text(x + 18, y, name, width=_LEGEND_WIDTH - 28)
    for column, text in enumerate(_COLUMNS[:columns]):
        pen.text(GAP + column * (width + GAP), top - LINE - 4, text, FAINT)
    for (key, one), line, height in zip(shown, pictures, heights, strict=True):
        for column, picture in enumerate(line):
            x = GAP + column * (width + GAP)
            pen.draw.rectangle((x - 1, top - 1, x + width, top + height), FRAME)
            sheet.paste(picture, (x + (width - picture.width) // 2, top + (height - picture.height) // 2))
        pen.text(GAP, top + height + 4, f"{one.name} of {key}", INK, width=across - 2 * GAP)
        top += height + LINE + 2 * GAP
    return sheet


def class_colour(class_id: int) -> tuple[int, int, int]:
    """A class's colour: red, green and blue; black for `IGNORE`."""
    if class_id == IGNORE:
        return _IGNORED
    value, saturation = (0.95, 0.65, 0.8)[class_id % 3], (0.85, 0.85, 0.5)[class_id % 3]
    red, green, blue = colorsys.hsv_to_rgb(class_id * _TURN % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def overlaid(image: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """An image under the colours of classes: uint8 [height, width, 3].

    Args:
        image: uint8 [height, width, 3].
        ids: int [down, across], class ids or `IGNORE`, of its pixels or of larger cells.
    """
    known, place = np.unique(ids, return_inverse=True)
    colours = np.array([class_colour(class_id) for class_id in known.tolist()])[place.reshape(ids.shape)]
    return np.rint((1 - _OVER) * image + _OVER * _spread(colours, image)).astype(np.uint8)


def _spread(cells: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Values of cells, [down, across, ...], at each pixel of an image."""
    rows, columns = (
        np.arange(side) * number // side for side, number in zip(image.shape[:2], cells.shape[:2], strict=True)
    )
    return cells[rows[:, None], columns]


def _pictures(one: ShownMask) -> list[Image.Image]:
    drawn = [one.image, overlaid(one.image, one.mask)]
    if one.classes is not None and one.confidence is not None:
        gray = np.rint(255 * _spread(one.confidence, one.image)).astype(np.uint8)
        drawn += [overlaid(one.image, one.classes), np.repeat(gray[..., None], 3, axis=2)]
    return [thumbnail(image, _LONGEST) for image in drawn]


def _seen(shown: Sequence[ShownMask]) -> list[int]:
    """The ids that occur, classes before `IGNORE`."""
    found = {
        int(one) for image in shown for ids in (image.mask, image.classes) if ids is not None for one in np.unique(ids)
    }
    return sorted(found - {IGNORE}) + [IGNORE] * (IGNORE in found)
