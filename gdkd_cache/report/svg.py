"""A figure as SVG text: the same figure, the same bytes; nothing in it is fetched, and nothing in it is code.

Texts stay texts, in whatever font the page has. No style attribute and no style element is left, as a strict
Content-Security-Policy takes neither: each property is an attribute of its own.
"""

import io
import re
import warnings
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.figure import Figure

from gdkd_cache.report.drawing import FAINT, INK, RULE

_SVG = "http://www.w3.org/2000/svg"
_FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"
_ON_PAGE = {INK: "currentColor", FAINT: f"var(--faint, {FAINT})", RULE: f"var(--rule, {RULE})"}
_REFERENCE = re.compile(r"url\(#([^)]*)\)")
_SIZE = re.compile(r"(\d[\d.]*)px")
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
_SAVED: Any = {"svg.fonttype": "none", "svg.hashsalt": "gdkd-cache", "svg.image_inline": True, "text.parse_math": False}


def to_svg(figure: Figure, name: str, *, on_page: bool = False) -> str:
    """A figure as SVG.

    Args:
        figure: drawn with `report/drawing.py`.
        name: its own on a page, of letters, digits and hyphens: what in it is referred to is named by it.
        on_page: whether it becomes a part of an HTML page, whose text colour, font, `--faint` and `--rule` it takes and
            whose width it fills; otherwise it is a file of its own, in colours for white paper.

    Returns:
        An `<svg>` element; in a file of its own an XML declaration goes before it.
    """
    file = io.BytesIO()
    with mpl.rc_context(_SAVED), warnings.catch_warnings():
        # Its fonts lack letters of names, and need not have them: the reader's fonts draw them.
        warnings.filterwarnings("ignore", category=UserWarning, module="matplotlib")
        warnings.filterwarnings("ignore", category=UserWarning, message=r"Glyph|Matplotlib currently")
        figure.savefig(file, format="svg", metadata=_NO_METADATA)
    root = _plain(ElementTree.fromstring(file.getvalue()))
    _rename(root, name)
    root.set("xmlns", _SVG)
    root.set("stroke-linejoin", "round")
    if on_page:
        del root.attrib["width"], root.attrib["height"]
        for element in root.iter():
            for key in ("fill", "stroke"):
                if (colour := element.get(key)) in _ON_PAGE:
                    element.set(key, _ON_PAGE[colour])
    else:
        root.set("font-family", _FONT)
    text = ElementTree.tostring(root, encoding="unicode")
    return text if on_page else f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _plain(element: ElementTree.Element) -> ElementTree.Element:
    """The same without namespaces, comments, metadata, and styles other than as attributes."""
    made = ElementTree.Element(_local(element.tag))
    for key, value in element.attrib.items():
        if _local(key) == "style":
            made.attrib.update(_properties(value))
        elif not key.startswith("{") or key.endswith("}href"):
            made.set(_local(key), value)
    made.text, made.tail = element.text, element.tail
    for child in element:
        if isinstance(child.tag, str) and _local(child.tag) not in ("metadata", "style", "script"):
            made.append(_plain(child))
    return made


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _properties(style: str) -> Iterator[tuple[str, str]]:
    """A style's properties; of fonts the size alone."""
    for part in style.split(";"):
        key, _, value = (text.strip() for text in part.partition(":"))
        if key in ("font", "font-size"):
            if size := _SIZE.search(value):
                yield "font-size", size[1]
        elif key and not key.startswith("font-"):
            yield key, value


def _rename(root: ElementTree.Element, name: str) -> None:
    """Let what is referred to be named after the figure, and nothing else have a name."""
    wanted = {value[1:] for element in root.iter() for key, value in element.attrib.items() if key == "href"}
    wanted |= {found for element in root.iter() for value in element.attrib.values() for found in _found(value)}
    names: dict[str, str] = {}
    for element in root.iter():
        if (own := element.attrib.pop("id", None)) in wanted:
            element.set("id", names.setdefault(own, f"{name}-{len(names)}"))
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "href" and value.startswith("#"):
                element.set(key, f"#{names[value[1:]]}")
            elif "url(#" in value:
                element.set(key, _REFERENCE.sub(lambda match: f"url(#{names[match[1]]})", value))


def _found(value: str) -> list[str]:
    return _REFERENCE.findall(value)
