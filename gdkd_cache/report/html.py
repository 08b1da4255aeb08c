"""A template as one HTML file: nothing in it is fetched, and no text in it becomes markup.

The template escapes every text, once that is one bounded, printable line. The Content-Security-Policy in the page's
head names its one style and its one script by their hashes, so that nothing else could act if it were there.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from gdkd_cache.texts import shown

_LONGEST = 2000


def rendered(name: str, filters: Mapping[str, Callable[..., object]], **values: Any) -> str:
    """The page of a template; the same values give the same text.

    Args:
        name: of `templates/NAME.html`, with its style, `NAME.css`, and its script, `NAME.js`, where it has one. They
            stand in it as `style`, `script` and `policy`.
        filters: that it uses, by name.
        values: what else it names.
    """
    folder = files("gdkd_cache.report") / "templates"
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_line
    )
    environment.filters.update(filters)
    sources = ["default-src 'none'", "img-src data:"]
    for kind, suffix in (("style", "css"), ("script", "js")):
        if (file := folder / f"{name}.{suffix}").is_file():
            text = file.read_text(encoding="utf-8")
            sources.append(f"{kind}-src 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'")
            values[kind] = Markup(text)
    policy = "; ".join([*sources, "base-uri 'none'", "form-action 'none'"])
    template = environment.from_string((folder / f"{name}.html").read_text(encoding="utf-8"))
    return template.render(policy=policy, **values)


def _line(value: object) -> object:
    """Any text that enters a page; what is markup is ours."""
    return value if isinstance(value, Markup) else shown(value, _LONGEST)
