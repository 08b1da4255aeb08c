"""The two small pictures on a cache's page, as SVG: how right the teacher is, and how much of its gradient is kept.

Like the page they are functions of the identity alone, and under the digest: what is drawn for an identity stays so, to
the byte, in all later versions.
"""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from gdkd_cache.store.facts import Examination, Examined
from gdkd_cache.store.manifest import Identity
from gdkd_cache.texts import shown

TEACHER_NAME = "card/teacher.svg"
FIDELITY_NAME = "card/fidelity.svg"
_WIDTH, _STEP, _TOP, _EDGE = 640, 44, 58, 16
_LONGEST, _MOST_BARS = 64, 8
_INK, _FAINT, _GROUND, _BAR, _MARK = "#1f2328", "#59636e", "#eaeef2", "#2f6fb5", "#b35900"


class _Bar(NamedTuple):
    """One line of a picture: what is measured, how much of the whole width it is, and in words."""

    label: str
    part: float
    text: str


def pictures(identity: Identity) -> dict[str, bytes]:
    """The pictures of a cache, by object name; none where nobody examined its teacher."""
    if identity.examination is None:
        return {}
    target = identity.request.fidelity
    errors = sorted(identity.fidelity.gradient_error.items())
    most = max([_inside(error, 10) for _, error in errors] + [1.25 * _inside(target, 10), 1e-6])
    kept = [_Bar(loss, _inside(error, most) / most, f"{_inside(error, 10):.3f}") for loss, error in errors]
    note = "how far gradients are from those of the full logits, 0 is exact; asked for (the line): "
    drawn = {TEACHER_NAME: _draw("How right the teacher is", "share of images or views", _right(identity.examination))}
    if kept:
        mark = _inside(target, most) / most
        drawn[FIDELITY_NAME] = _draw(
            "Gradient error by loss", f"{note}{_inside(target, 10):g}", kept[:_MOST_BARS], mark
        )
    return drawn


def _right(examination: Examination) -> list[_Bar]:
    shown: list[tuple[Examined, str]] = []
    if examination.evaluated is not None:
        shown.append((examination.evaluated, f"images of {examination.data}"))
    shown.append((examination.views, "of the views here"))
    bars = []
    for examined, of in shown:
        for share, name in ((examined.top1, "first class"), (examined.top5, "first five classes")):
            part = _inside(share, 1)
            bars.append(_Bar(f"{name}, {_inside(examined.rows, 10**15):,.0f} {of}", part, f"{part:.1%}"))
    return bars


def _inside(number: int | float, most: int | float) -> float:
    """A number of somebody's manifest, as far as it can be drawn."""
    return float(min(max(number, 0), most))


def _draw(title: str, note: str, bars: Sequence[_Bar], mark: float | None = None) -> bytes:
    height, width = _TOP + _STEP * len(bars) + 4, _WIDTH - 2 * _EDGE
    said = escape("; ".join(f"{shown(bar.label, _LONGEST)}: {bar.text}" for bar in bars))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'role="img" font-family="system-ui, sans-serif" font-size="14">',
        f"<title>{title}</title>",
        f"<desc>{said}</desc>",
        f'<rect width="{_WIDTH}" height="{height}" rx="8" fill="#ffffff"/>',
        f'<text x="{_EDGE}" y="26" font-size="16" font-weight="600" fill="{_INK}">{title}</text>',
        f'<text x="{_EDGE}" y="45" font-size="12" fill="{_FAINT}">{escape(note)}</text>',
    ]
    for number, bar in enumerate(bars):
        y = _TOP + _STEP * number
        lines += [
            f'<text x="{_EDGE}" y="{y + 16}" fill="{_INK}">{escape(shown(bar.label, _LONGEST))}</text>',
            f'<text x="{_WIDTH - _EDGE}" y="{y + 16}" text-anchor="end" fill="{_INK}">{escape(bar.text)}</text>',
            f'<rect x="{_EDGE}" y="{y + 23}" width="{width}" height="10" rx="2" fill="{_GROUND}"/>',
            f'<rect x="{_EDGE}" y="{y + 23}" width="{round(bar.part * width)}" height="10" rx="2" fill="{_BAR}"/>',
        ]
        if mark is not None:
            x = _EDGE + round(mark * width)
            lines.append(f'<rect x="{x - 1}" y="{y + 20}" width="2" height="16" fill="{_MARK}"/>')
    return "\n".join([*lines, "</svg>", ""]).encode()
