"""Who works on what, so that all processes that build one cache share its work and do none of it twice.

A claim is an object that one process alone can create. It stands as long as its owner lives: the owner rewrites a beat
every few seconds, and one whose beat has not changed for `EXPIRY` seconds, by the clock of whoever waits for it, is
dead, as is one whose process is gone from this machine. Then the next attempt at the work may be claimed, again by one
alone. Claims save work and decide nothing: what two processes do at once all the same are the same bytes.
"""

import itertools
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from types import TracebackType

from gdkd_cache.errors import CacheError, StoreError
from gdkd_cache.objects.objects import WritableObjects
from gdkd_cache.schema import check_json
from gdkd_cache.store.manifest import canonical_json, parse_json

CLAIMS_NAME = "claims"
EXPIRY = 60.0
_BEATS_PER_EXPIRY = 6
_LIMIT = 1000
_TRIES = 5


class Claims:
    """The claims of one process in one place; a context, at whose end they all expire at once."""

    def __init__(self, objects: WritableObjects) -> None:
        self._objects, self._owner = objects, uuid.uuid4().hex
        self._claim = canonical_json({"owner": self._owner, "machine": _machine(), "process": os.getpid()})
        self._heard: dict[str, tuple[bytes, float]] = {}
        self._ending = Event()
        self._heart = Thread(target=self._keep_beating, name="claims-beat", daemon=True)

    def __enter__(self) -> "Claims":
        for tries_left in reversed(range(_TRIES)):
            try:
                self._objects.write(_beat_name(self._owner), b"0")
                break
            except FileNotFoundError:  # another process is removing all claims, as the cache is complete
                if not tries_left:
                    raise
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ending.set()
        self._heart.join()
        with suppress(OSError, StoreError):  # else it expires
            self._objects.delete(_beat_name(self._owner))

    def _keep_beating(self) -> None:
        for beat in itertools.count(1):
            if self._ending.wait(EXPIRY / _BEATS_PER_EXPIRY):
                return
            with suppress(OSError, StoreError):  # one beat may be missed; what else is written tells of it
                if self._objects.size(_beat_name(self._owner)) is None:
                    return
                self._objects.write(_beat_name(self._owner), b"%d" % beat)

    def take(self, work: str) -> bool:
        """Claim some work, named as objects are: is it this process's now?

        Raises:
            OSError, StoreError: the place cannot be read or written.
        """
        for attempt in itertools.count():
            name = f"{CLAIMS_NAME}/{work}/{attempt}.json"
            try:
                if self._objects.create(name, self._claim):
                    return True
                if self._lives(name, self._objects.read(name, _LIMIT)):
                    return False
            except (FileNotFoundError, CacheError):
                return False  # claims just went, as the cache is complete
        raise AssertionError

    def check(self) -> None:
        """Make sure that nobody has taken this process for dead.

        Raises:
            StoreError: somebody has.
        """
        if self._objects.size(_beat_name(self._owner)) is None:
            raise StoreError(
                f"{self._objects.location}: other processes took over the work of this one, which they had not heard "
                f"of for {EXPIRY:g} s; run the same command again"
            )

    def _lives(self, name: str, claim: bytes) -> bool:
        """Whether a claim's owner is alive; one that is not loses all its claims."""
        try:
            stored = parse_json(name, claim)
            check_json(name, stored, {"owner": str, "machine": str, "process": int})
            owner = uuid.UUID(stored["owner"]).hex
        except (CacheError, ValueError):
            return False
        try:
            beat = self._objects.read(_beat_name(owner), _LIMIT)
        except CacheError:
            return False
        now = time.monotonic()
        if self._heard.get(owner, (b"", 0.0))[0] != beat:
            self._heard[owner] = beat, now
        here = stored["machine"] == _machine()
        if now - self._heard[owner][1] < EXPIRY and (not here or _runs(stored["process"])):
            return True
        self._objects.delete(_beat_name(owner))
        return False


def _beat_name(owner: str) -> str:
    return f"{CLAIMS_NAME}/beats/{owner}"


def _machine() -> str:
    """Where process numbers mean the same: this machine and, on Linux, its container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return f"{uuid.getnode():x}"


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
