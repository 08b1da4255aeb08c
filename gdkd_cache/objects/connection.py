"""A URL and what answers there, an object store (S3, Google Cloud Storage, Azure) or a web server; through obstore."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import HTTPStore, from_url

from gdkd_cache.errors import StoreError
from gdkd_cache.objects.names import check_name
from gdkd_cache.objects.urls import WEB, split_url
from gdkd_cache.progress import waiting

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

# Prefixes of the environment variables that obstore reads; it reads none for web servers.
_SETTINGS = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE", "https": "HTTP", "http": "HTTP"}
# Server errors, throttling and broken connections are tried again; the jitter makes it 4 to 60 s before it gives up.
_RETRY: "RetryConfig" = {
    "max_retries": 8,
    "retry_timeout": timedelta(minutes=3),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=15), "base": 4},
}
# `read_timeout`, of a pause in an answer, also covers the sending of one part, hence two minutes for what may be a slow
# line; `timeout` is of a whole answer. Each may be set in the environment as obstore names it: AWS_READ_TIMEOUT=10s.
_TIMEOUTS: "ClientConfig" = {"connect_timeout": "10s", "read_timeout": "2m", "timeout": "30m"}
SCHEMES = tuple(_SETTINGS)
PIECE = 1  # bytes at least: as they come, so that a slow server is seen to be one; it costs nothing
PAGE_START = 200
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html)\b", re.IGNORECASE)


class Connection:
    """Lives in the process that made it, as obstore hangs after a fork.

    Attributes:
        location: the URL without credentials.
    """

    def __init__(self, url: str) -> None:
        """Connect to nothing yet; credentials come from the environment, by obstore's own rules.

        Raises:
            UsageError: another kind of URL, credentials in it, or an unencrypted connection to another machine.
            StoreError: the environment's settings are wrong.
        """
        parts = split_url(url, SCHEMES)
        self.location = f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")
        self._process = os.getpid()
        self._is_web = parts.scheme in WEB
        self._prefix = _SETTINGS[parts.scheme]
        with self._told():
            if self._is_web:
                options: ClientConfig = {**self._timeouts(), "allow_http": parts.scheme == "http"}
                self._store = HTTPStore.from_url(self.location, client_options=options, retry_config=_RETRY)
            else:
                allowed = os.environ.get(f"{self._prefix}_ALLOW_HTTP", "").lower() in ("1", "true")
                options = {**self._timeouts(), "allow_http": allowed}
                self._store = from_url(self.location, client_options=options, retry_config=_RETRY)

    def _timeouts(self) -> "ClientConfig":
        # Options of ours replace all that obstore would read from the environment, so these are read here.
        given = {name: os.environ.get(f"{self._prefix}_{name.upper()}") for name in _TIMEOUTS}
        return {**_TIMEOUTS, **{name: value for name, value in given.items() if value}}  # pyright: ignore[reportReturnType]

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self.location}: an object store stays in its process; open it again in the other")

    @contextmanager
    def _told(self, name: str | None = None) -> Iterator[Callable[[int], None]]:
        """Check an object's name, then reach for it as `_reaching` does, or for the place."""
        if name is not None:
            check_name(self.location, name)
        with self._reaching(self.location if name is None else f"{self.location}/{name}") as got:
            yield got

    @contextmanager
    def _reaching(self, what: str) -> Iterator[Callable[[int], None]]:
        """Tell what obstore raises in a line of ours, as its own may quote signed URLs; and that it takes long, if so.

        What it gives is called with each number of bytes that came.
        """
        if os.getpid() != self._process:
            raise StoreError(f"{what}: used in a forked process, where it would hang; use spawn or forkserver")
        try:
            with waiting(f"waiting for {what}") as got:
                yield got
        except (BaseError, FileNotFoundError, ValueError) as error:
            raise StoreError(f"{what}: {self._reason(error)}") from None
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of Rust, whose class cannot be imported
                raise
            raise StoreError(f"{what}: what the server or the URL says broke the client; check both") from None

    def _refuse_page(self, what: str, data: bytes | bytearray) -> None:
        """Web servers answer with pages, and with success, where they have no such file, or want a login first.

        Raises:
            StoreError: the first bytes of a file are those of a page.
        """
        if self._is_web and _PAGE.match(data[:PAGE_START]):
            raise StoreError(f"{what}: the server answered with a web page, not with a file; try the URL in a browser")

    def _reason(self, error: Exception) -> str:
        """What went wrong and what to do, from the kind of error, the status and error code alone."""
        text = str(error)
        if "as Duration" in text:
            names = ", ".join(f"{self._prefix}_{name.upper()}" for name in _TIMEOUTS)
            return f"one of {names} in the environment is no duration; such as 30s or 2m"
        if "MissingContentLength" in text:
            return "the server does not say how long the file is (no Content-Length); serve it with one that does"
        if "kind: Timeout" in text:
            limits = " or ".join(f"{self._prefix}_{name.upper()}" for name in ("read_timeout", "timeout"))
            return f"no answer, or it came to a stop or took too long; run it again, or allow more ({limits}=10m)"
        return _reason(error)


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
