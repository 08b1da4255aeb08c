"""Figures as SVG: the same twice, alone and many on a page, light and dark, whatever the names."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from gdkd_cache.report.drawing import (
    FAINT,
    INK,
    RULE,
    SERIES,
    Line,
    add_legend,
    add_panel_name,
    draw_bars,
    draw_lines,
    draw_profile,
    draw_reference,
    draw_steps,
    new_axes,
    set_logarithmic,
)
from gdkd_cache.report.svg import to_svg

_NAMES = [
    "<script>alert(1)</script>",
    "]]><svg onload=alert(1)>",
    "$\\frac{1}{2}$ $broken",
    "{{7*7}} & &amp;",
    "\x00\x1b[31m\ud800",
    "\u202eevil\u2066",
    "猫 العربية 🐈",
    "w" * 10**6,
]


def _figure(name: str = "a name") -> Figure:
    figure, (upper, lower) = new_axes(x=name, y="y", y_format=".0%", rows=2)
    x = np.arange(1, 30)
    draw_lines(upper, [Line(name=name, x=x, y=x / 30, low=x / 40, high=x / 20), Line(name="other", x=x, y=1 / x)])
    draw_reference(upper, [1, 29], [1, 0], "theory")
    set_logarithmic(upper, "y")
    draw_steps(lower, np.linspace(1, 29, 8), [(name, np.arange(7) / 7)])
    add_panel_name(lower, name)
    add_legend(figure, upper)
    return figure


def test_the_same_figure_is_the_same_text() -> None:
    assert to_svg(_figure(), "a") == to_svg(_figure(), "a")
    assert to_svg(_figure(), "a", on_page=True) == to_svg(_figure(), "a", on_page=True)


def test_nothing_that_a_strict_policy_refuses_or_that_is_fetched() -> None:
    for on_page in (False, True):
        text = to_svg(_figure(), "a", on_page=on_page)
        root = ElementTree.fromstring(text)
        for element in root.iter():
            assert element.tag.rpartition("}")[2] in {
                "svg",
                "defs",
                "g",
                "path",
                "text",
                "clipPath",
                "rect",
                "use",
                "tspan",
            }
            assert not {"style", "class"} & element.attrib.keys()
            assert not any(key.startswith("on") for key in element.attrib)
        assert set(re.findall(r"https?://[^\"]*", text)) == {"http://www.w3.org/2000/svg"}
        assert ">theory<" in text


def test_names_on_a_page_are_apart_and_all_found() -> None:
    one, other = (to_svg(_figure(), name, on_page=True) for name in ("one", "other"))
    ids, others = (set(re.findall(r' id="([^"]*)"', text)) for text in (one, other))
    assert ids
    assert not ids & others
    assert set(re.findall(r'(?:url\(|href=")#([^)"]*)', one)) == ids


def test_a_page_brings_its_colours_and_width() -> None:
    on_page, alone = (to_svg(_figure(), "a", on_page=on_page) for on_page in (True, False))
    assert not any(colour in on_page for colour in (f'"{INK}"', f'"{FAINT}"', f'"{RULE}"'))
    assert all(there in on_page for there in ("currentColor", "var(--faint", "var(--rule", "viewBox"))
    root, paper = ElementTree.fromstring(on_page), ElementTree.fromstring(alone)
    assert "width" not in root.attrib
    assert paper.attrib["width"]
    assert "currentColor" not in alone
    assert "var(" not in alone


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("ground", ["#ffffff", "#fcfcfb", "#16171a", "#1d1e22"])
def test_colours_stand_out_on_both_grounds(ground: str) -> None:
    for colour in SERIES:
        low, high = sorted([_luminance(colour), _luminance(ground)])
        assert (high + 0.05) / (low + 0.05) >= 3


@pytest.mark.parametrize("name", _NAMES, ids=range(len(_NAMES)))
def test_hostile_names_are_text(name: str) -> None:
    text = to_svg(_figure(name), "a", on_page=True)
    assert len(text) < 100_000
    root = ElementTree.fromstring(text)
    assert {element.tag.rpartition("}")[2] for element in root.iter()}.isdisjoint({"script", "image", "a"})
    shown = ["".join(element.itertext()) for element in root.iter() if element.tag.endswith("text")]
    start = name[:20] if name.isascii() and name.isprintable() else "\ufffd" if not name.isprintable() else name[:5]
    assert any(start in one for one in shown)
    assert all(len(one) <= 72 for one in shown)


def test_bars_and_profiles() -> None:
    figure, (axes,) = new_axes(x="share", y="", x_format=".0%")
    draw_bars(axes, ["one", "two"], [0.25, 0.5])
    assert ">two<" in to_svg(figure, "a")
    figure, (axes,) = new_axes(x="class", y="")
    draw_profile(axes, np.arange(5) / 10, own=4)
    assert SERIES[1] in to_svg(figure, "a")


def test_an_axis_of_less_than_a_decade_has_numbers() -> None:
    figure, (axes,) = new_axes(x="x", y="y")
    draw_lines(axes, [Line(name="", x=[1, 2], y=[0.03, 0.07])])
    set_logarithmic(axes, "y")
    assert ">0.05<" in to_svg(figure, "a")
