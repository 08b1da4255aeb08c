"""Names of a package that load on first use, so that importing it costs nothing."""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_names(package: str, places: dict[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose public names lie in other modules.

    Args:
        package: its `__name__`.
        places: where each name lies: a module that has it, or `module:` for the module itself.
    """

    def load(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        place, colon, _ = places[name].partition(":")
        module = import_module(place)
        return module if colon else getattr(module, name)

    return load
