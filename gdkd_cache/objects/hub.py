"""Objects in a dataset repository of the Hugging Face Hub, to read: those of one commit, which never change."""

import hashlib
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

from gdkd_cache.errors import CacheError, StoreError
from gdkd_cache.objects.hub_library import KIND, find_commit, is_missing, object_url, open_api, receive, told
from gdkd_cache.objects.hub_place import HubPlace
from gdkd_cache.objects.names import check_name, is_hidden
from gdkd_cache.objects.record import ObjectRecord
from gdkd_cache.schema import short

_LOG = logging.getLogger(__name__)
_MOST_LISTED = 2**20


class HubFile(NamedTuple):
    """What the Hub says of a file: its size, and its SHA-256 or, of one that lies in git itself, its git hash."""

    size: int
    sha256: str | None
    git_hash: str

    def holds(self, record: ObjectRecord, read: Callable[[], bytes]) -> bool:
        """Whether it is the recorded object, whose bytes `read` gives from elsewhere."""
        if self.size != record.size:
            return False
        return self.git_hash == git_hash(read()) if self.sha256 is None else self.sha256 == record.sha256


def git_hash(data: bytes) -> str:
    """What git calls a file of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class Hub:
    """`Objects` of a commit.

    Attributes:
        location: the URL, with the commit.
    """

    def __init__(self, url: str) -> None:
        """Find the commit that a branch or tag (without one: the main branch) is at; all that is read is of that.

        Raises:
            UsageError: no such URL, or huggingface_hub is not installed.
            StoreError: no such repository or revision, or the Hub cannot be reached, or refuses.
        """
        place = HubPlace.parse(url)
        self._api = open_api()
        commit = place.revision if place.is_pinned else find_commit(self._api, place)
        if commit is None:
            raise StoreError(
                f"{place}: there is no such dataset repository, or not for you; check its name, or log in "
                "(hf auth login), or set HF_TOKEN"
            )
        self._place = place.at(commit)
        self.location = str(self._place)
        if not place.is_pinned:
            _LOG.info("%s is read as it is now: %s, which names it for good", place, self.location)

    @property
    def commit(self) -> str:
        """The commit's hash."""
        assert self._place.revision is not None
        return self._place.revision

    def _told(self, name: str | None) -> AbstractContextManager[Callable[[int], None]]:
        if name is not None:
            check_name(self.location, name)
        return told(self.location if name is None else f"{self.location}/{name}")

    def size(self, name: str) -> int | None:
        with self._told(name):
            try:
                size = receive(object_url(self._api, self._place, name), -1, bytes)
            except Exception as error:
                if is_missing(error):
                    return None
                raise
        if size is None:
            raise StoreError(f"{self.location}/{name}: the server does not say how long the file is; try again later")
        return size

    def read(self, name: str, limit: int) -> bytes:
        data = bytearray()
        self._receive(name, limit, data.extend)
        return bytes(data)

    def record(self, name: str, limit: int) -> ObjectRecord:
        size, sha256 = 0, hashlib.sha256()

        def take(piece: bytes) -> None:
            nonlocal size
            size += len(piece)
            sha256.update(piece)

        self._receive(name, limit, take)
        return ObjectRecord(size, sha256.hexdigest())

    def _receive(self, name: str, limit: int, take: Callable[[bytes], object]) -> None:
        with self._told(name) as got:

            def taken(piece: bytes) -> None:
                take(piece)
                got(len(piece))

            try:
                receive(object_url(self._api, self._place, name), limit, taken)
            except Exception as error:
                if is_missing(error):
                    raise CacheError(f"{self.location}: {name} is missing") from None
                raise

    def sizes(self, folder: str | None = None) -> dict[str, int]:
        return {name: file.size for name, file in self.files(folder).items()}

    def files(self, folder: str | None = None) -> dict[str, HubFile]:
        """All objects (of a sub-folder) by name, in name order, without hidden ones.

        Raises:
            StoreError: also where the list cannot be that of a cache.
        """
        under, start = self._place.path(folder), self._place.path("") + "/" * bool(self._place.folder)
        found: dict[str, HubFile] = {}
        with self._told(folder):
            try:
                entries = self._api.list_repo_tree(
                    self._place.repository, under or None, recursive=True, revision=self.commit, repo_type=KIND
                )
                for number, entry in enumerate(entries):
                    size, path = getattr(entry, "size", None), entry.path  # folders have no size
                    if number == _MOST_LISTED or not (isinstance(path, str) and path.startswith(start)):
                        raise StoreError(f"{self.location}: the Hub lists what is no cache's, such as {short(path)}")
                    name = path.removeprefix(start)
                    if type(size) is int and not is_hidden(name):
                        lfs = getattr(entry, "lfs", None)
                        found[name] = HubFile(size, lfs and lfs.sha256, getattr(entry, "blob_id", ""))
            except Exception as error:
                if not is_missing(error):
                    raise
        return dict(sorted(found.items()))
