"""Things of one kind by name: ours, one line each, and a user's own, named as `package.module:name`.

A name that the user types may import code; a name that a cache holds never does. It finds ours, and what the user has
named in this process before, and is refused otherwise with what to type.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Generic, NamedTuple, TypeVar

from gdkd_cache.errors import CacheError, UsageError, first_line

Thing = TypeVar("Thing")
_own: dict[str, Any] = {}


class Entry(NamedTuple):
    """Attributes: path: `module:name` of the thing; summary: what it is, in a line; form: how it is typed."""

    path: str
    summary: str
    form: str | None = None


class Registry(Generic[Thing]):
    """Things of one kind by name; imports none of them before it is asked for.

    Args:
        what: the kind, for messages.
        entries: ours.
        base: `module:name` of the class that they must derive from; None where anything callable will do.
    """

    def __init__(self, what: str, entries: Mapping[str, Entry], *, base: str | None = None) -> None:
        self.what, self.entries, self._base = what, dict(entries), base

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def forms(self) -> str:
        """How each is typed, and how a user's own is."""
        return ", ".join([*(entry.form or name for name, entry in self.entries.items()), "package.module:name"])

    def summaries(self) -> dict[str, str]:
        """What each is, in a line, by how it is typed."""
        return {entry.form or name: entry.summary for name, entry in self.entries.items()}

    def split(self, spec: str) -> tuple[str, str | None]:
        """Cut a spec into the name and what stands after the name's colon, None where there is no such colon.

        Raises:
            UsageError: it begins with no name of ours, and with no `package.module:name`.
        """
        name, colon, rest = spec.partition(":")
        if name not in self.entries:
            attribute, colon, rest = rest.partition(":")
            if not (attribute.isidentifier() and all(part.isidentifier() for part in name.split("."))):
                raise UsageError(f"{self.what} is {spec!r}; it must be one of {self.forms()}")
            name = f"{name}:{attribute}"
        return name, rest if colon else None

    def load(self, name: str) -> Thing:
        """The thing of a name that the user gave; imports the user's own.

        Raises:
            UsageError: an unknown name, code that cannot be imported, or a thing of another kind.
        """
        if name in self.entries:
            return self._checked(name, _imported(self.entries[name].path))
        if ":" not in name:
            raise UsageError(f"{self.what} is {name!r}; it must be one of {self.forms()}")
        return self._checked(name, use(name))

    def is_known(self, name: str) -> bool:
        """Whether `known` gives something."""
        return name in self.entries or name in _own

    def known(self, name: str) -> Thing:
        """The thing of a name that a cache holds: ours, or one that the user has named in this process.

        Raises:
            CacheError: any other name.
        """
        if name in self.entries:
            return self._checked(name, _imported(self.entries[name].path))
        if name in _own:
            return self._checked(name, _own[name])
        if ":" in name:
            raise CacheError(
                f"{self.what} {name!r} is code that no file may load: if you have it and trust it, name it yourself, "
                f"with --use {name} (or gdkd_cache.use({name!r}))"
            )
        raise CacheError(f"{self.what} {name!r} is not known to this version, which reads {', '.join(self)}")

    def name_of(self, thing: Any) -> str:
        """The name of one of ours, or `package.module:name` of a user's own."""
        path = f"{thing.__module__}:{thing.__qualname__}"
        return next((name for name, entry in self.entries.items() if entry.path == path), path)

    def _checked(self, name: str, thing: Any) -> Thing:
        if self._base is not None and not (isinstance(thing, type) and issubclass(thing, _imported(self._base))):
            raise UsageError(f"{self.what} {name!r} is no class that derives from {self._base.replace(':', '.')}")
        if not callable(thing):
            raise UsageError(f"{self.what} {name!r} cannot be called")
        return thing  # pyright: ignore[reportReturnType]  (checked above, as far as names allow)


def use(name: str) -> Any:
    """Import code of the user's own, `package.module:name`, which caches may mention from now on in this process.

    Raises:
        UsageError: no such name, or it cannot be imported.
    """
    module, colon, attribute = name.partition(":")
    if not (colon and attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise UsageError(f"{name!r} names no code; it must be package.module:name")
    try:
        thing = _imported(name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{name!r} cannot be imported: {error}; is its folder on PYTHONPATH?") from None
    except Exception as error:  # the user's own module may raise anything
        raise UsageError(f"{name!r} cannot be imported: {first_line(error)}") from error
    canonical = f"{getattr(thing, '__module__', module)}:{getattr(thing, '__qualname__', attribute)}"
    _own[name] = _own[canonical] = thing
    return thing


def _imported(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)
