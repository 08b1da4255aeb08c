"""The contact sheet as a page of HTML: pictures inside, text as text, and nothing that runs or reaches elsewhere."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from gdkd_cache.report.html import rendered
from gdkd_cache.report.sheet import ShownRow, ShownView
from gdkd_cache.texts import shown

_LONGEST = 300
_LONGEST_SIDE = 224
_EXACT_SIDE = 96
"""Up to this side pictures are pixel for pixel those of the view; above it they are JPEG."""


def page_of_views(rows: Sequence[ShownRow], classes: Sequence[str], title: Sequence[str]) -> str:
    """Rows of views as a page; the same arguments give the same text.

    Args:
        rows: at least one; all of the same views.
        classes: class names in the order of class ids.
        title: texts above it all.
    """
    return rendered("show", {}, title=title, rows=[_row(row, classes) for row in rows])


def _row(row: ShownRow, classes: Sequence[str]) -> dict[str, Any]:
    return {
        "key": shown(row.key, _LONGEST),
        "label": shown(row.named(classes), _LONGEST),
        "image": _data_uri(row.image),
        "views": [_view(view, row.label, classes) for view in row.views],
    }


def _view(view: ShownView, label: int, classes: Sequence[str]) -> dict[str, Any]:
    kinds = {class_id: "partner" for class_id, _ in view.mixed} | {label: "own"}
    return {
        "number": view.view,
        "image": _data_uri(view.image),
        "mixed": [
            {"name": shown(classes[class_id], _LONGEST), "share": f"{share:.0%}", "kind": kinds[class_id]}
            for class_id, share in view.mixed
        ],
        "top": [
            {
                "name": shown(classes[class_id], _LONGEST),
                "text": f"{probability:.1%}",
                "value": f"{probability:.4f}",
                "kind": kinds.get(class_id, ""),
            }
            for class_id, probability in view.top
        ],
    }


def _data_uri(image: np.ndarray) -> Markup:
    """A picture as an address, which is no text of anybody's."""
    picture, data = Image.fromarray(image), io.BytesIO()
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.LANCZOS)
    kind, facts = ("png", {}) if max(picture.size) <= _EXACT_SIDE else ("jpeg", {"quality": 90})
    picture.save(data, kind, **facts)
    return Markup(f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}")
