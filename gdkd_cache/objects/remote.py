"""Objects under a URL, to read: what object stores and web servers have in common, and web servers."""

import obstore

from gdkd_cache.errors import CacheError
from gdkd_cache.objects.connection import PIECE, Connection
from gdkd_cache.objects.record import ObjectRecord


class Remote(Connection):
    """All of `Objects` but their list."""

    def size(self, name: str) -> int | None:
        with self._told(name):
            try:
                return obstore.head(self._store, name)["size"]
            except FileNotFoundError:
                return None

    def read(self, name: str, limit: int) -> bytes:
        data = bytearray()
        with self._told(name) as got:
            try:
                for chunk in obstore.get(self._store, name).stream(PIECE):
                    data += chunk
                    got(len(chunk))
                    if len(data) > limit:
                        break
            except FileNotFoundError:
                raise CacheError(f"{self.location}: {name} is missing") from None
        self._refuse_page(f"{self.location}/{name}", data)
        return bytes(data[: limit + 1])

    def record(self, name: str, limit: int) -> ObjectRecord:
        return ObjectRecord.of(self.read(name, limit))


class WebServer(Remote):
    """`Objects` that a web server gives: it has no list of them, and takes none."""

    def sizes(self, folder: str | None = None) -> dict[str, int]:
        return {}
