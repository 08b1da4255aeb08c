"""huggingface_hub as it is used here: found or asked for, its errors in our words, its answers of bounded size."""

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from gdkd_cache.errors import GdkdCacheError, StoreError, UsageError
from gdkd_cache.objects.hub_place import HubPlace
from gdkd_cache.progress import waiting

try:
    from huggingface_hub import HfApi, errors, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff
except ImportError:
    raise UsageError("hf:// needs huggingface_hub, which is not installed: pip install 'gdkd-cache[hub]'") from None

KIND = "dataset"
_LIBRARY = "gdkd-cache"
_SILENCE = 120.0
"""Seconds without a byte after which an answer is given up, as of other stores."""
_MOST_FACTS = 2**20
_BREAKS = 5
"""How often the rest of an object is asked for after a broken connection."""
_HTTP_ERROR: type[Exception] = errors.HfHubHTTPError.__mro__[1]
"""The base of what its HTTP library raises, which is not the same in all versions."""


class _Unsigned(logging.Filter):
    """Cuts the queries of URLs, which may be signed, out of what the library logs of requests that it repeats."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = re.sub(r"\?[^\s'\"]*", "", record.getMessage()), None
        return True


logging.getLogger("huggingface_hub.utils._http").addFilter(_Unsigned())


def open_api() -> HfApi:
    """The Hub that HF_ENDPOINT names, with the token that the library finds: HF_TOKEN, or the file of its login."""
    return HfApi(library_name=_LIBRARY)


@contextmanager
def told(what: object) -> Iterator[Callable[[int], None]]:
    """Tell what the library raises in a line of ours, as its own may quote signed URLs; and that it takes long, if so.

    What it gives is called with each number of bytes that came.

    Raises:
        StoreError: it failed.
    """
    try:
        with waiting(f"waiting for {what}") as got:
            yield got
    except GdkdCacheError:
        raise
    except Exception as error:  # a malformed answer raises whatever the library stumbles over
        raise StoreError(f"{what}: {_reason(error)}") from None


def find_commit(api: HfApi, place: HubPlace) -> str | None:
    """The commit that a revision is at now; None where there is no such repository, or none that the token may see.

    Raises:
        StoreError: no such revision, or the Hub cannot be reached, or refuses.
    """
    revision = quote(place.revision or "main", safe="")
    url = f"{api.endpoint}/api/datasets/{place.repository}/revision/{revision}?expand=sha"
    answer = bytearray()
    with told(place):
        try:
            receive(url, _MOST_FACTS, answer.extend)
        except errors.GatedRepoError:
            raise
        except errors.RepositoryNotFoundError:
            return None
        commit = json.loads(answer)["sha"]
        if not isinstance(commit, str) or not place.at(commit).is_pinned:
            raise StoreError(f"{place}: the Hub names no commit of it; check HF_ENDPOINT")
        return commit


def object_url(api: HfApi, place: HubPlace, name: str) -> str:
    """Where the Hub gives an object of a commit."""
    path = place.path(name)
    return hf_hub_url(place.repository, path, repo_type=KIND, revision=place.revision, endpoint=api.endpoint)


def receive(url: str, limit: int, take: Callable[[bytes], object]) -> int | None:
    """Ask for what lies under a URL of the Hub, and hand on its bytes as they come, at most `limit` + 1 of them.

    A connection that breaks is taken up where it broke. What the Hub redirects to gets no token.

    Returns:
        How many bytes there are said to be; None where that is not said.

    Raises:
        Exception: what the library raises, for `told`; where there is no such file, what `is_missing` knows.
    """
    plain = {**build_hf_headers(library_name=_LIBRARY), "Accept-Encoding": "identity"}
    came, size, broken = 0, None, None
    for _ in range(_BREAKS):
        headers = plain | ({"Range": f"bytes={came}-"} if came else {})
        with http_stream_backoff("GET", url, headers=headers, timeout=_SILENCE) as response:
            hf_raise_for_status(response)
            goes_on = response.headers.get("Content-Range", "").startswith(f"bytes {came}-")
            if not goes_on:
                length = response.headers.get("Content-Length", "")
                size = int(length) if re.fullmatch(r"\d{1,18}", length) else None
            if limit < 0:
                return size
            again = 0 if goes_on else came  # bytes that are sent once more
            try:
                for piece in response.iter_raw():
                    new = piece[again : again + limit + 1 - came]
                    again = max(again - len(piece), 0)
                    take(new)
                    came += len(new)
                    if came > limit:
                        return size
            except _HTTP_ERROR as error:  # not to be raised here: whoever opened the stream would open it once more
                broken = error
            else:
                return size
    assert broken is not None
    raise broken


def is_missing(error: Exception) -> bool:
    """Whether the library says that a repository has no such file or folder."""
    unknown = type(error) is errors.HfHubHTTPError and error.response.status_code == 404
    return unknown or isinstance(error, errors.EntryNotFoundError)


def _reason(error: BaseException | None) -> str:
    """What went wrong and what to do, from the kind of error and the status alone."""
    first = error
    while error is not None:
        if reason := _known(error):
            return reason
        error = error.__cause__
    return f"what the Hub answered cannot be understood ({type(first).__name__}); check HF_ENDPOINT, or try again later"


def _known(error: BaseException) -> str | None:
    login = "log in (hf auth login), or set HF_TOKEN"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the Hub is not asked; unset it, or use a folder that gdkd-cache pull made"
    if isinstance(error, errors.GatedRepoError):
        return f"its owner grants access: ask for it on the repository's page, then {login}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no such dataset repository, or not for you; check its name, or {login}"
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision; name a branch, a tag or a commit of it"
    if isinstance(error, errors.DisabledRepoError):
        return "the Hub has disabled this repository"
    if isinstance(error, errors.HfHubHTTPError):
        return _refusal(error.response.status_code, login)
    if isinstance(error, _HTTP_ERROR):
        late = "Timeout" in type(error).__name__
        what = "it gave no answer in time" if late else "it cannot be reached, or the connection broke again and again"
        return f"{what}; check network and HF_ENDPOINT, and run the same command again"
    return None


def _refusal(status: int, login: str) -> str:
    if status == 401:
        return f"the token is not valid (401); {login} again"
    if status == 403:
        return "permission denied (403); writing wants a token that may write there, and a quota that has room"
    if status in (409, 412):
        return f"somebody else changed it meanwhile ({status}); run the same command again"
    if status == 413:
        return "it is too large for the Hub (413)"
    if status == 429:
        return f"too many requests (429), and it stayed so; run the same command again later, or {login}"
    if status >= 500:
        return f"the Hub failed ({status}), and went on failing; run the same command again later"
    return f"the Hub refused ({status}); check the repository, the revision and HF_ENDPOINT"


def without_bars(call: Callable[[], Any]) -> Any:
    """Call while the library draws no progress bars, as ours stands there."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        return call()
    disable_progress_bars()
    try:
        return call()
    finally:
        enable_progress_bars()
