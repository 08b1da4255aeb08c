"""Files of other people in an object store or on a web server, to read only: they need no object names."""

import re
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import obstore

from gdkd_cache.errors import UsageError
from gdkd_cache.objects.connection import PAGE_START, PIECE, SCHEMES, Connection
from gdkd_cache.objects.urls import split_url
from gdkd_cache.schema import short

if TYPE_CHECKING:
    from obstore import ObjectMeta

_NAME = re.compile(r"\w[\w.,=+@-]*")  # what is a name in every store, in a URL and in a folder


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

    def _telling(self, name: str) -> AbstractContextManager[Callable[[int], None]]:
        """What `_told` is for objects."""
        return self._reaching(f"{self.location}/{name}")

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
            data = bytes(obstore.get_range(self._store, name, start=start, length=size))
        if start == 0:
            self._refuse_page(f"{self.location}/{name}", data)
        return data

    def get(self, name: str) -> tuple[Version, Generator[bytes, None, None]] | None:
        """What the store says of a file, and its content in pieces, to be closed; it may be longer or shorter.

        Raises:
            StoreError: as `version`; the pieces raise it too.
        """
        with self._telling(name):
            try:
                found = obstore.get(self._store, name)
            except FileNotFoundError:
                return None
            return _version(found.meta), self._pieces(name, iter(found.stream(PIECE)))

    def _pieces(self, name: str, stream: Iterator[bytes]) -> Generator[bytes, None, None]:
        start = b""
        with self._telling(name) as got:
            for piece in stream:
                got(len(piece))
                if len(start) < PAGE_START:
                    start += piece[:PAGE_START]
                    self._refuse_page(f"{self.location}/{name}", start)
                yield piece


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
        parts = split_url(url, SCHEMES)
        folder, _, name = parts.path.rpartition("/")
        where = parts._replace(path=folder).geturl()
        if where not in opened:
            opened[where] = Files(where)
        if not _NAME.fullmatch(name):
            raise UsageError(f"{opened[where].location}: {short(name)} is no file's name: letters, digits and .,_-=+@")
        places.append((opened[where], name))
    return places
