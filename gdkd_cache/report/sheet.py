"""The drawing of a contact sheet; no two things overlap, whatever the names and sizes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from gdkd_cache.limits import NO_LABEL
from gdkd_cache.report.pen import FAINT, FRAME, GAP, INK, LINE, PAPER, Pen, font, thumbnail, wrapped

_NARROWEST = 160
_KEY_LINES = 4

_OWN, _PARTNER = (0, 112, 40), (176, 80, 0)
_BARS = {INK: (218, 226, 240), _OWN: (186, 230, 196), _PARTNER: (252, 216, 178)}


@dataclass(frozen=True, kw_only=True)
class ShownView:
    """One view of one row.

    Attributes:
        view: its number.
        image: uint8 [height, width, 3].
        top: (class id, probability) of the teacher's five likeliest classes (all, where there are fewer), falling.
        mixed: (class id, share) of the row's own image and of its partner's; empty where the recipe does not mix.
    """

    view: int
    image: np.ndarray
    top: tuple[tuple[int, float], ...]
    mixed: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class ShownRow:
    """One row: its key, its label, its decoded image (uint8 [height, width, 3]) and some of its views."""

    key: str
    label: int
    image: np.ndarray
    views: tuple[ShownView, ...]

    def named(self, classes: Sequence[str]) -> str:
        """What its label is called."""
        return "none" if self.label == NO_LABEL else classes[self.label]


def draw_sheet(rows: Sequence[ShownRow], classes: Sequence[str], title: Sequence[str]) -> Image.Image:
    """Draw rows of views.

    Args:
        rows: at least one; all of the same views.
        classes: class names in the order of class ids.
        title: texts above it all, each on as many lines as it needs.

    Returns:
        An RGB picture; the same arguments give the same pixels.
    """
    thumbnails = [[thumbnail(row.image), *(thumbnail(view.image) for view in row.views)] for row in rows]
    everything = [image for line in thumbnails for image in line]
    width = max(_NARROWEST, *(image.width for image in everything))
    height = max(image.height for image in everything)
    num_lines = max(_num_lines(view) for row in rows for view in row.views)
    num_lines = max(num_lines, 1 + _KEY_LINES)
    step = height + num_lines * LINE + 2 * GAP
    across = GAP + (width + GAP) * len(thumbnails[0])
    written = font()
    lines = [line for text in title for line in wrapped(text, written, across - 2 * GAP)]
    top = GAP + (len(lines) + 1) * LINE + GAP
    sheet = Image.new("RGB", (across, top + step * len(rows)), PAPER)
    pen = Pen(ImageDraw.Draw(sheet), width, written)
    for number, line in enumerate(lines):
        pen.text(GAP, GAP + number * LINE, line, width=across - 2 * GAP)
    for column, text in enumerate(["source", *(f"view {view.view}" for view in rows[0].views)]):
        pen.text(GAP + column * (width + GAP), top - LINE - 4, text, FAINT)
    for number, (row, images) in enumerate(zip(rows, thumbnails, strict=True)):
        y = top + number * step
        for column, image in enumerate(images):
            x = GAP + column * (width + GAP)
            pen.draw.rectangle((x - 1, y - 1, x + width, y + height), FRAME)
            sheet.paste(image, (x + (width - image.width) // 2, y + (height - image.height) // 2))
            below = y + height + 4
            if column == 0:
                pen.text(x, below, f"label: {row.named(classes)}", _OWN)
                pen.wrapped(x, below + LINE, row.key, FAINT, _KEY_LINES)
            else:
                _draw_view(pen, x, below, row.views[column - 1], row.label, classes)
    return sheet


def _num_lines(view: ShownView) -> int:
    return len(view.mixed) + len(view.top)


def _draw_view(pen: Pen, x: int, y: int, view: ShownView, label: int, classes: Sequence[str]) -> None:
    """What is mixed, where it is, and then the top classes, each on a bar of its probability."""
    colours = {class_id: _PARTNER for class_id, _ in view.mixed} | {label: _OWN}
    for class_id, share in view.mixed:
        pen.text(x, y, f"{share:.0%} {classes[class_id]}", colours[class_id])
        y += LINE
    for class_id, probability in view.top:
        colour = colours.get(class_id, INK)
        pen.bar(x, y, probability, _BARS[colour])
        pen.entry(x, y, classes[class_id], f"{probability:.1%}", colour)
        y += LINE
