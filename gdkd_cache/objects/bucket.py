"""Objects in an object store (S3, Google Cloud Storage, Azure) or, to read only, on a web server; through obstore."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import HTTPStore, from_url

from gdkd_cache.errors import CacheError, StoreError, UsageError
from gdkd_cache.objects.names import check_name
from gdkd_cache.objects.record import ObjectRecord

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

_SETTINGS = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}  # prefixes of the environment variables that obstore reads
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# Server errors, throttling and broken connections are tried again; the jitter makes it 4 to 60 s before it gives up.
_RETRY: "RetryConfig" = {
    "max_retries": 8,
    "retry_timeout": timedelta(minutes=3),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=15), "base": 4},
}
# `read_timeout` also covers the sending of one part, hence two minutes for what may be a slow line.
_TIMEOUTS: "ClientConfig" = {"connect_timeout": "10s", "read_timeout": "2m", "timeout": "30m"}
_PART = 5 * 2**20  # the smallest part that S3 allows
_PARTS_AT_ONCE = 2


class Bucket:
    """`Objects` under one URL. Lives in the process that made it: obstore hangs after a fork."""

    def __init__(self, url: str) -> None:
        """Connect to nothing yet; credentials come from the environment, by obstore's own rules.

        Raises:
            UsageError: another kind of URL, credentials in it, or an unencrypted connection to another machine.
            StoreError: the environment's settings are wrong.
        """
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        self.location = f"{parts.scheme}://{host}{parts.path}".rstrip("/")
        self._web, self._process = parts.scheme in ("http", "https"), os.getpid()
        if not self._web and parts.scheme not in _SETTINGS:
            raise UsageError(f"{self.location}: no place for a cache; give a folder, s3://, gs://, az:// or https://")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise UsageError(f"{self.location}: give the URL without user, ? and #; credentials go in the environment")
        if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            raise UsageError(f"{self.location}: http:// is for this machine only, as anyone can alter it; use https://")
        if not host:
            raise UsageError(f"{self.location}: names no bucket or host; such as s3://BUCKET/PATH")
        with self._told():
            if self._web:
                options: ClientConfig = {**_TIMEOUTS, "allow_http": parts.scheme == "http"}
                self._store = HTTPStore.from_url(self.location, client_options=options, retry_config=_RETRY)
            else:
                # Options of ours replace all that obstore would read from the environment, so this one is read here.
                allowed = os.environ.get(f"{_SETTINGS[parts.scheme]}_ALLOW_HTTP", "").lower() in ("1", "true")
                options = {**_TIMEOUTS, "allow_http": allowed}
                self._store = from_url(self.location, client_options=options, retry_config=_RETRY)

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self.location}: an object store stays in its process; open the cache again in the other")

    @contextmanager
    def _told(self, name: str | None = None) -> Iterator[None]:
        """Check the name, and tell what obstore raises in a line of ours: its own may quote signed URLs."""
        what = self.location
        if name is not None:
            check_name(self.location, name)
            what = f"{what}/{name}"
        if os.getpid() != self._process:
            raise StoreError(f"{what}: used in a forked process, where it would hang; use spawn or forkserver")
        try:
            yield
        except (BaseError, FileNotFoundError, ValueError) as error:
            raise StoreError(f"{what}: {_reason(error)}") from None

    def prepare(self) -> None:
        if self._web:
            raise UsageError(f"{self.location}: a web server is read-only; write to a folder, s3://, gs:// or az://")

    def size(self, name: str) -> int | None:
        with self._told(name):
            try:
                return obstore.head(self._store, name)["size"]
            except FileNotFoundError:
                return None

    def sweep(self) -> None:
        """Nothing to do: what was not put whole does not exist."""

    def sizes(self, folder: str | None = None) -> dict[str, int]:
        if self._web:
            return {}
        with self._told(folder):
            found = [meta for page in obstore.list(self._store, folder, chunk_size=1000) for meta in page]
        # The empty name is what consoles put there to show a folder.
        return dict(sorted((meta["path"], meta["size"]) for meta in found if meta["path"]))

    def read(self, name: str, limit: int) -> bytes:
        data = bytearray()
        with self._told(name):
            try:
                for chunk in obstore.get(self._store, name):
                    data += chunk
                    if len(data) > limit:
                        break
            except FileNotFoundError:
                raise CacheError(f"{self.location}: {name} is missing") from None
        return bytes(data[: limit + 1])

    def record(self, name: str, limit: int) -> ObjectRecord:
        return ObjectRecord.of(self.read(name, limit))

    def write(self, name: str, data: bytes) -> None:
        with self._told(name):
            put = obstore.put(self._store, name, data, chunk_size=_PART, max_concurrency=_PARTS_AT_ONCE)
        self._check(name, data, put["e_tag"])

    def create(self, name: str, data: bytes) -> bool:
        with self._told(name):
            try:
                put = obstore.put(self._store, name, data, mode="create", use_multipart=False)
            except AlreadyExistsError:  # it may be our own: an answer that was lost is asked for again
                return self.read(name, len(data)) == data
        self._check(name, data, put["e_tag"])
        return True

    def _check(self, name: str, data: bytes, e_tag: str | None) -> None:
        if not self._is(name, data, e_tag):
            self.delete(name)  # so that no later run takes it for what it should be
            raise StoreError(f"{self.location}/{name}: the store held something else than was sent; try again")

    def holds(self, name: str, record: ObjectRecord, read: Callable[[], bytes]) -> bool:
        with self._told(name):
            e_tag = obstore.head(self._store, name)["e_tag"]
        return self._is(name, read(), e_tag)

    def _is(self, name: str, data: bytes, e_tag: str | None) -> bool:
        """Whether an object holds `data`: by the MD5 that the store itself took, where it tells; else read back."""
        return (e_tag or "").strip('"') == _md5(data) or self.read(name, len(data)) == data

    def delete(self, name: str) -> None:
        names = list(self.sizes(name)) or [name]
        with self._told(name), suppress(FileNotFoundError):
            obstore.delete(self._store, names)


def _md5(data: bytes) -> str:
    """What S3 and its kin give as the ETag of bytes that were put whole, or in parts as `write` does."""
    if len(data) <= _PART:
        return hashlib.md5(data, usedforsecurity=False).hexdigest()
    parts = [hashlib.md5(data[start : start + _PART], usedforsecurity=False) for start in range(0, len(data), _PART)]
    whole = hashlib.md5(b"".join(part.digest() for part in parts), usedforsecurity=False)
    return f"{whole.hexdigest()}-{len(parts)}"


def _reason(error: Exception) -> str:
    """What went wrong and what to do, from the status and error code alone."""
    text = str(error)
    found = re.search(r"status code: (\d{3})(?:.*?<Code>(\w{1,40})</Code>)?", text, re.DOTALL)
    status, code = found.groups() if found else (None, None)
    said = f"{status} {code}" if code else status
    if "169.254.169.254" in text or re.match(r"Generic \w+ error: (Missing|Account must be)", text):
        return "no credentials, or no account, in the environment; set those of your store, such as AWS_ACCESS_KEY_ID"
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or status in ("401", "403"):
        return f"permission denied ({said}); check the credentials in the environment, and what they may do"
    if isinstance(error, FileNotFoundError):
        return f"no such bucket ({said}); create it first"
    if status in ("429", "503"):
        return f"the store is throttling or overloaded ({said}), and stayed so; run the same command again later"
    if status is not None and status >= "500":
        return f"the store failed ({said}), and went on failing; run the same command again later"
    if status is not None or "redirect" in text:
        return f"the store refused ({said or 'a redirect'}); check bucket, region and endpoint"
    if "builder error" in text:
        return "the endpoint is http://, which needs AWS_ALLOW_HTTP=true (or GOOGLE_, AZURE_)"
    if isinstance(error, ValueError) or "URL error" in text:
        return "not a URL of an object store"
    return "the store cannot be reached, or the connection broke again and again; check network and endpoint"
