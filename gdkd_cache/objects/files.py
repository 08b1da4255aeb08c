"""Files of other people in an object store or on a web server, to read only: they need no object names."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import obstore

from gdkd_cache.errors import StoreError, UsageError
from gdkd_cache.objects.connection import Connection
from gdkd_cache.schema import short

if TYPE_CHECKING:
    from obstore import ObjectMeta

_NAME = re.compile(r"\w[\w.,=+@-]*")  # what is a name in every store, in a URL and in a folder
_PIECE = 2**20


@dataclass(frozen=True)
class Version:
    """Which content a file has, as its store tells it.

    Attributes:
        size: bytes.
        tag: its ETag or, where the store gives none, when it was last changed.
    """

    size: int
    tag: str


class Files(Connection):
    """The files under one URL, whatever their names. Lives in the process that made it, as any `Connection`."""

    @contextmanager
    def _telling(self, name: str) -> Iterator[None]:
        """What `_told` is for objects."""
        try:
            with self._told():
                yield
        except StoreError as error:
            raise StoreError(f"{self.location}/{name}{str(error).removeprefix(self.location)}") from None

    def version(self, name: str) -> Version | None:
        """What the store says of a file, None where there is none.

        Raises:
            StoreError: the store cannot be reached, or refuses.
        """
        with self._telling(name):
            try:
                return _version(obstore.head(self._store, name))
            except FileNotFoundError:
                return None

    def size(self, name: str) -> int | None:
        version = self.version(name)
        return None if version is None else version.size

    def span(self, name: str, start: int, size: int) -> bytes:
        """A part of a file that exists and reaches so far.

        Raises:
            StoreError: as `version`.
        """
        with self._telling(name):
            return bytes(obstore.get_range(self._store, name, start=start, length=size))

    def get(self, name: str) -> tuple[Version, Iterator[bytes]] | None:
        """What the store says of a file, and its content in pieces, which may be more or less than it says.

        Raises:
            StoreError: as `version`; the pieces raise it too.
        """
        with self._telling(name):
            try:
                found = obstore.get(self._store, name)
            except FileNotFoundError:
                return None
            return _version(found.meta), self._pieces(name, iter(found.stream(_PIECE)))

    def _pieces(self, name: str, stream: Iterator[bytes]) -> Iterator[bytes]:
        with self._telling(name):
            yield from stream


def _version(meta: "ObjectMeta") -> Version:
    return Version(meta["size"], meta["e_tag"] or meta["last_modified"].isoformat())


def open_files(urls: Iterable[str]) -> list[tuple[Files, str]]:
    """Where each URL leads: the files of its folder, and its name there. One connection serves a whole folder.

    Raises:
        UsageError, StoreError: as `Connection`; or a URL that ends in no plain name.
    """
    opened: dict[str, Files] = {}
    places = []
    for url in urls:
        parts = urlsplit(url)
        folder, _, name = parts.path.rpartition("/")
        where = parts._replace(path=folder).geturl()  # with what Connection refuses, such as a user
        if where not in opened:
            opened[where] = Files(where)
        if not _NAME.fullmatch(name):
            raise UsageError(f"{opened[where].location}: {short(name)} is no file's name: letters, digits and .,_-=+@")
        places.append((opened[where], name))
    return places
