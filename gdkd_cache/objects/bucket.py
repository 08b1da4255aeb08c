"""Objects in an object store (S3, Google Cloud Storage, Azure)."""

import hashlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError

from gdkd_cache.errors import StoreError
from gdkd_cache.objects.names import check_name, is_hidden
from gdkd_cache.objects.record import ObjectRecord
from gdkd_cache.objects.remote import Remote

_PART = 5 * 2**20  # the smallest part that S3 allows
_PARTS_AT_ONCE = 2
_LARGEST_PUT = 64 * 2**20
_DELETED_AT_ONCE = 1000


class Bucket(Remote):
    """`WritableObjects` under one URL."""

    def prepare(self) -> None:
        """Nothing to do: folders are but names."""

    def sweep(self) -> None:
        """Nothing to do: what was not put whole does not exist."""

    def sizes(self, folder: str | None = None) -> dict[str, int]:
        with self._told(folder):
            found = [meta for page in obstore.list(self._store, folder, chunk_size=1000) for meta in page]
        # The empty name is what consoles put there to show a folder.
        return dict(
            sorted((meta["path"], meta["size"]) for meta in found if meta["path"] and not is_hidden(meta["path"]))
        )

    def stamp(self, name: str) -> str | None:
        with self._told(name):
            try:
                return obstore.head(self._store, name)["e_tag"]
            except FileNotFoundError:
                return None

    def alone(self) -> AbstractContextManager[None]:
        return nullcontext()

    def write(self, name: str, data: bytes, *, allowed: Callable[[], None] | None = None) -> None:
        if allowed is not None and len(data) <= _LARGEST_PUT:
            while not self._write_over(name, data, self.stamp(name), allowed):
                pass
            return
        if allowed is not None:  # too large to be put at once, which alone can depend on what stands there
            allowed()
        with self._told(name):
            put = obstore.put(self._store, name, data, chunk_size=_PART, max_concurrency=_PARTS_AT_ONCE)
        self._check(name, data, put["e_tag"])

    def _write_over(self, name: str, data: bytes, stamp: str | None, allowed: Callable[[], None]) -> bool:
        """Write an object where it is still what it was, or absent; whether it was, or holds `data` already."""
        if stamp is None:
            return self.create(name, data, allowed=allowed)
        allowed()
        with self._told(name):
            try:
                put = obstore.put(self._store, name, data, mode={"e_tag": stamp}, use_multipart=False)
            except PreconditionError:  # it may be our own: an answer that was lost is asked for again
                return self.read(name, len(data)) == data
        self._check(name, data, put["e_tag"])
        return True

    def create(self, name: str, data: bytes, *, allowed: Callable[[], None] | None = None) -> bool:
        if allowed is not None:
            allowed()
        with self._told(name):
            try:
                put = obstore.put(self._store, name, data, mode="create", use_multipart=False)
            except AlreadyExistsError:  # it may be our own: an answer that was lost is asked for again
                return self.read(name, len(data)) == data
        self._check(name, data, put["e_tag"])
        return True

    def _check(self, name: str, data: bytes, e_tag: str | None) -> None:
        if not self._is(name, data, e_tag):
            self.delete([name])  # so that no later run takes it for what it should be
            raise StoreError(f"{self.location}/{name}: the store held something else than was sent; try again")

    def holds(self, name: str, record: ObjectRecord, read: Callable[[], bytes]) -> bool:
        with self._told(name):
            e_tag = obstore.head(self._store, name)["e_tag"]
        return self._is(name, read(), e_tag)

    def _is(self, name: str, data: bytes, e_tag: str | None) -> bool:
        """Whether an object holds `data`: by the MD5 that the store itself took, where it tells; else read back."""
        return (e_tag or "").strip('"') == _md5(data) or self.read(name, len(data)) == data

    def delete(self, names: Iterable[str], *, allowed: Callable[[], None] | None = None) -> None:
        names = list(names)
        for name in names:
            check_name(self.location, name)
        if allowed is not None:
            allowed()
        for first in range(0, len(names), _DELETED_AT_ONCE):
            with self._told(), suppress(FileNotFoundError):
                obstore.delete(self._store, names[first : first + _DELETED_AT_ONCE])


def _md5(data: bytes) -> str:
    """What S3 and its kin give as the ETag of bytes that were put whole, or in parts as `write` does."""
    if len(data) <= _PART:
        return hashlib.md5(data, usedforsecurity=False).hexdigest()
    parts = [hashlib.md5(data[start : start + _PART], usedforsecurity=False) for start in range(0, len(data), _PART)]
    whole = hashlib.md5(b"".join(part.digest() for part in parts), usedforsecurity=False)
    return f"{whole.hexdigest()}-{len(parts)}"
