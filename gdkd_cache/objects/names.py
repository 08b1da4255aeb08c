"""One name syntax for all objects: no `..`, no hidden or absolute names, nothing that a shell would read.

Lower case, so that no two names are one on any file system; but for the README.md, whose name others look for. What is
hidden (`.git`, `.gitattributes`) belongs to others, who may keep it beside the objects.
"""

import re

from gdkd_cache.errors import CacheError
from gdkd_cache.schema import short

_LONGEST = 200
README_NAME = "README.md"
_NAME = re.compile(r"[a-z0-9_][a-z0-9_.-]*(/[a-z0-9_][a-z0-9_.-]*)*")


def check_name(location: str, name: str) -> None:
    """Refuse a name that could lead out of the place.

    Raises:
        CacheError: it is not an object name.
    """
    if name != README_NAME and (not _NAME.fullmatch(name) or ".." in name or len(name) > _LONGEST):
        raise CacheError(f"{location}: {short(name)} is not an object name")


def is_hidden(name: str) -> bool:
    """Whether a name, or one of the folders in it, begins with a dot."""
    return name.startswith(".") or "/." in name
