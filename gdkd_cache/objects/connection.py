"""A URL and what answers there, an object store (S3, Google Cloud Storage, Azure) or a web server; through obstore."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import HTTPStore, from_url

from gdkd_cache.errors import StoreError, UsageError
from gdkd_cache.objects.names import check_name

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
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        self.location = f"{parts.scheme}://{host}{parts.path}".rstrip("/")
        self._process = os.getpid()
        web = parts.scheme in ("http", "https")
        if not web and parts.scheme not in _SETTINGS:
            raise UsageError(f"{self.location}: no place for a cache; give a folder, s3://, gs://, az:// or https://")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise UsageError(f"{self.location}: give the URL without user, ? and #; credentials go in the environment")
        if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            raise UsageError(f"{self.location}: http:// is for this machine only, as anyone can alter it; use https://")
        if not host:
            raise UsageError(f"{self.location}: names no bucket or host; such as s3://BUCKET/PATH")
        with self._told():
            if web:
                options: ClientConfig = {**_TIMEOUTS, "allow_http": parts.scheme == "http"}
                self._store = HTTPStore.from_url(self.location, client_options=options, retry_config=_RETRY)
            else:
                # Options of ours replace all that obstore would read from the environment, so this one is read here.
                allowed = os.environ.get(f"{_SETTINGS[parts.scheme]}_ALLOW_HTTP", "").lower() in ("1", "true")
                options = {**_TIMEOUTS, "allow_http": allowed}
                self._store = from_url(self.location, client_options=options, retry_config=_RETRY)

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self.location}: an object store stays in its process; open it again in the other")

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
