"""The drawing of a contact sheet; no two things overlap, whatever the names and sizes."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gdkd_cache.limits import NO_LABEL

_LONGEST = 192  # a multiple of 8, 32, 64 and 96
_NARROWEST = 160
_LINE = 19
_GAP = 14
_LONGEST_TEXT = 300
_LONGEST_TITLE = 2000
_KEY_LINES = 4

_INK, _FAINT, _OWN, _PARTNER = (32, 32, 32), (112, 112, 112), (0, 112, 40), (176, 80, 0)
_PAPER, _FRAME = (255, 255, 255), (228, 228, 228)
_BARS = {_INK: (218, 226, 240), _OWN: (186, 230, 196), _PARTNER: (252, 216, 178)}

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


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
    thumbnails = [[_thumbnail(row.image), *(_thumbnail(view.image) for view in row.views)] for row in rows]
    everything = [image for line in thumbnails for image in line]
    width = max(_NARROWEST, *(image.width for image in everything))
    height = max(image.height for image in everything)
    num_lines = max(_num_lines(view) for row in rows for view in row.views)
    num_lines = max(num_lines, 1 + _KEY_LINES)
    step = height + num_lines * _LINE + 2 * _GAP
    across = _GAP + (width + _GAP) * len(thumbnails[0])
    font = ImageFont.load_default(size=14)
    lines = [line for text in title for line in _wrapped(text, font, across - 2 * _GAP)]
    top = _GAP + (len(lines) + 1) * _LINE + _GAP
    sheet = Image.new("RGB", (across, top + step * len(rows)), _PAPER)
    pen = _Pen(ImageDraw.Draw(sheet), width, font)
    for number, line in enumerate(lines):
        pen.text(_GAP, _GAP + number * _LINE, line, width=across - 2 * _GAP)
    for column, text in enumerate(["source", *(f"view {view.view}" for view in rows[0].views)]):
        pen.text(_GAP + column * (width + _GAP), top - _LINE - 4, text, _FAINT)
    for number, (row, images) in enumerate(zip(rows, thumbnails, strict=True)):
        y = top + number * step
        for column, image in enumerate(images):
            x = _GAP + column * (width + _GAP)
            pen.draw.rectangle((x - 1, y - 1, x + width, y + height), _FRAME)
            sheet.paste(image, (x + (width - image.width) // 2, y + (height - image.height) // 2))
            below = y + height + 4
            if column == 0:
                pen.text(x, below, f"label: {row.named(classes)}", _OWN)
                pen.wrapped(x, below + _LINE, row.key, _FAINT, _KEY_LINES)
            else:
                _draw_view(pen, x, below, row.views[column - 1], row.label, classes)
    return sheet


def _num_lines(view: ShownView) -> int:
    return len(view.mixed) + len(view.top)


def _draw_view(pen: "_Pen", x: int, y: int, view: ShownView, label: int, classes: Sequence[str]) -> None:
    """What is mixed, where it is, and then the top classes, each on a bar of its probability."""
    colours = {class_id: _PARTNER for class_id, _ in view.mixed} | {label: _OWN}
    for class_id, share in view.mixed:
        pen.text(x, y, f"{share:.0%} {classes[class_id]}", colours[class_id])
        y += _LINE
    for class_id, probability in view.top:
        colour = colours.get(class_id, _INK)
        pen.bar(x, y, probability, _BARS[colour])
        pen.entry(x, y, classes[class_id], f"{probability:.1%}", colour)
        y += _LINE


def _thumbnail(image: np.ndarray) -> Image.Image:
    """Enlarged by a whole factor, pixel for pixel, as far as it goes up to 192 pixels; or reduced to that."""
    picture = Image.fromarray(image)
    longest = max(picture.size)
    if longest > _LONGEST:
        size = [max(1, round(side * _LONGEST / longest)) for side in picture.size]
        return picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    factor = _LONGEST // longest
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    """A text in lines that fit, broken between words, or anywhere in a word that is wider than a line."""
    rest, lines = _printable(text, _LONGEST_TITLE), []
    while rest:
        count = _count(rest, font, width)
        space = rest.rfind(" ", 0, count + 1) if count < len(rest) else -1
        count = space if space > 0 else count
        lines.append(rest[:count])
        rest = rest[count:].lstrip()
    return lines


def _count(text: str, font: Font, width: int) -> int:
    """How many leading characters fit, and never none."""
    return max(1, bisect_right(range(1, len(text) + 1), width, key=lambda count: round(font.getlength(text[:count]))))


class _Pen:
    """Writes lines of text that never leave their width."""

    def __init__(self, draw: ImageDraw.ImageDraw, width: int, font: Font) -> None:
        self.draw, self.width, self._font = draw, width, font

    def text(self, x: int, y: int, text: str, colour: Colour = _INK, *, width: int | None = None) -> None:
        """One line, cut off with an ellipsis where it is too long."""
        self.draw.text((x, y), self._fit(text, self.width if width is None else width), colour, self._font)

    def wrapped(self, x: int, y: int, text: str, colour: Colour, most_lines: int) -> None:
        """At most so many lines, broken anywhere; the last one is cut off where it must be."""
        rest = _printable(text)
        for number in range(most_lines):
            count = len(rest) if number == most_lines - 1 else _count(rest, self._font, self.width)
            self.text(x, y + number * _LINE, rest[:count], colour)
            rest = rest[count:]

    def bar(self, x: int, y: int, part: float, colour: Colour) -> None:
        """A line's background over a part of its width."""
        if length := round(part * self.width):
            self.draw.rectangle((x, y, x + length - 1, y + _LINE - 3), colour)

    def entry(self, x: int, y: int, text: str, number: str, colour: Colour) -> None:
        """A name on the left and a number on the right of one line."""
        room = self._length(number) + 8
        self.draw.text((x + 4, y), self._fit(text, self.width - room - 8), colour, self._font)
        self.draw.text((x + self.width - room + 4, y), number, colour, self._font)

    def _length(self, text: str) -> int:
        return round(self._font.getlength(text))

    def _fit(self, text: str, width: int) -> str:
        text = _printable(text)
        if self._length(text) <= width:
            return text
        return text[: _count(text, self._font, width - self._length("…"))] + "…"


def _printable(text: str, longest: int = _LONGEST_TEXT) -> str:
    return "".join(char if char.isprintable() else " " for char in text[:longest])
