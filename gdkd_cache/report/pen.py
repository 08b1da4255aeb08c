"""Texts that never leave their width, and pictures of a size, for sheets."""

from bisect import bisect_right

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LINE, GAP = 19, 14
INK, FAINT, PAPER, FRAME = (32, 32, 32), (112, 112, 112), (255, 255, 255), (228, 228, 228)
_LONGEST = 192  # a multiple of 8, 32, 64 and 96
_LONGEST_TEXT = 300
_LONGEST_TITLE = 2000

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def font() -> Font:
    """What all is written in."""
    return ImageFont.load_default(size=14)


def thumbnail(image: np.ndarray, most: int = _LONGEST) -> Image.Image:
    """Enlarged by a whole factor, pixel for pixel, as far as it goes up to `most` pixels; or reduced to that."""
    picture = Image.fromarray(image)
    longest = max(picture.size)
    if longest > most:
        size = [max(1, round(side * most / longest)) for side in picture.size]
        return picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    factor = most // longest
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def wrapped(text: str, font: Font, width: int) -> list[str]:
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


class Pen:
    """Writes lines of text that never leave their width."""

    def __init__(self, draw: ImageDraw.ImageDraw, width: int, font: Font) -> None:
        self.draw, self.width, self._font = draw, width, font

    def text(self, x: int, y: int, text: str, colour: Colour = INK, *, width: int | None = None) -> None:
        """One line, cut off with an ellipsis where it is too long."""
        self.draw.text((x, y), self._fit(text, self.width if width is None else width), colour, self._font)

    def wrapped(self, x: int, y: int, text: str, colour: Colour, most_lines: int) -> None:
        """At most so many lines, broken anywhere; the last one is cut off where it must be."""
        rest = _printable(text)
        for number in range(most_lines):
            count = len(rest) if number == most_lines - 1 else _count(rest, self._font, self.width)
            self.text(x, y + number * LINE, rest[:count], colour)
            rest = rest[count:]

    def bar(self, x: int, y: int, part: float, colour: Colour) -> None:
        """A line's background over a part of its width."""
        if length := round(part * self.width):
            self.draw.rectangle((x, y, x + length - 1, y + LINE - 3), colour)

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
