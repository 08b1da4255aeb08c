"""What is a URL: taken apart in one place, as Python, obstore and servers each read broken ones otherwise."""

import re
from urllib.parse import SplitResult, urlsplit

from gdkd_cache.errors import UsageError
from gdkd_cache.schema import short
from gdkd_cache.terminal import printable

WEB = ("http", "https")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|\w[\w.-]*)(:\d{1,5})?")
_LONGEST, _LONGEST_SHOWN = 2000, 200
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{16,}")


def scheme_of(place: str) -> str | None:
    """The scheme of a URL in lower case; None for what is no URL but a path."""
    found = _URL.match(place)
    return None if found is None else found[1].lower()


def without_secrets(url: str) -> str:
    """A URL, however broken, as messages may tell it: short, without user, password, token and query."""
    scheme, colon, rest = url.partition("://")
    if not rest.startswith("datasets/"):  # of the Hub, where a revision stands behind the @
        rest = rest.rpartition("@")[2]
    text = _TOKEN.sub("hf_...", printable(scheme + colon + re.split("[?#]", rest)[0]))
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def split_url(url: str, schemes: tuple[str, ...]) -> SplitResult:
    """A URL of one of some schemes, with a host (or bucket) and a path, and nothing else.

    Raises:
        UsageError: it is broken or of another kind, has credentials in it, or leads over an unencrypted connection to
            another machine.
    """
    shown = without_secrets(url)
    if scheme_of(url) not in schemes:
        raise UsageError(f"{shown}: no place for a cache; give a folder, s3://, gs://, az://, hf:// or https://")
    if not url.isprintable() or len(url) > _LONGEST:
        raise UsageError(f"{shown} is no URL: it is longer than {_LONGEST} characters, or one of them is in no URL")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # whose own text may quote a password
        raise UsageError(f"{shown} is no URL: its host or port is broken; such as {_example(url)}") from None
    if "@" in parts.netloc or "?" in url or "#" in url:
        raise UsageError(f"{shown}: give the URL without user, ? and #; credentials go in the environment")
    web = parts.scheme in WEB
    if _TOKEN.search(url):
        raise UsageError(f"{shown}: a token stands in it, for all to see; log in (hf auth login), or set HF_TOKEN")
    if not parts.netloc:
        raise UsageError(f"{shown} names no {'host' if web else 'bucket'}; such as {_example(url)}")
    if not _HOST.fullmatch(parts.netloc):
        raise UsageError(f"{shown} is no URL: {short(parts.netloc)} is no host; such as {_example(url)}")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise UsageError(f"{shown}: http:// is for this machine only, as anyone can alter it; use https://")
    return parts


def _example(url: str) -> str:
    scheme = scheme_of(url)
    return f"{scheme}://{'HOST' if scheme in WEB else 'CONTAINER' if scheme == 'az' else 'BUCKET'}/PATH"
