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


class Claims:
    """The claims of one process in one place, on the work of one build; a context, at whose end all expire at once."""

    def __init__(self, objects: WritableObjects, build: str) -> None:
        """Claim nothing yet.

        Args:
            objects: of the place.
            build: what all processes of the build call it: letters and digits.
        """
        self._objects, self._folder, self._owner = objects, f"{CLAIMS_NAME}/{build}", uuid.uuid4().hex
        self._beat = self._beat_of(self._owner)
        self._claim = canonical_json({"owner": self._owner, "machine": _machine(), "process": os.getpid()})
        self._heard: dict[str, tuple[bytes, float]] = {}
        self._ending = Event()
        self._heart = Thread(target=self._keep_beating, name="claims-beat", daemon=True)

    def __enter__(self) -> "Claims":
        self._objects.write(self._beat, b"0")
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ending.set()
        self._heart.join()
        with suppress(OSError, StoreError):  # else it expires
            self._objects.delete([self._beat])

    def _keep_beating(self) -> None:
        for beat in itertools.count(1):
            if self._ending.wait(EXPIRY / _BEATS_PER_EXPIRY):
                return
            with suppress(OSError, StoreError):  # one beat may be missed; what else is written tells of it
                if self._objects.size(self._beat) is None:
                    return
                self._objects.write(self._beat, b"%d" % beat)

    def take(self, work: str) -> bool:
        """Claim some work, named as objects are: is it this process's now?

        Raises:
            OSError, StoreError: the place cannot be read or written.
        """
        for attempt in itertools.count():
            name = f"{self._folder}/{work}/{attempt}.json"
            try:
                if self._objects.create(name, self._claim):
                    return True
                if self._lives(name, self._objects.read(name, _LIMIT)):
                    return False
            except CacheError:
                return False  # claims just went, as the cache is complete
        raise AssertionError

    def agreed(self, what: str, word: bytes) -> bytes:
        """What all processes of this build take for something: the word of the first to ask. It goes with the claims.

        Raises:
            OSError, StoreError, CacheError: the place cannot be read or written.
        """
        name = f"{self._folder}/{what}/0.json"
        self._objects.create(name, word)
        return self._objects.read(name, _LIMIT)

    def check(self) -> None:
        """Make sure that nobody has taken this process for dead.

        Raises:
            StoreError: somebody has.
        """
        if self._objects.size(self._beat) is None:
            raise StoreError(
                f"{self._objects.location}: other processes took over the work of this one, which they had not heard "
                f"of for {EXPIRY:g} s; run the same command again"
            )

    def _beat_of(self, owner: str) -> str:
        return f"{self._folder}/beats/{owner}"

    def _lives(self, name: str, claim: bytes) -> bool:
        """Whether a claim's owner is alive; one that is not loses all its claims."""
        try:
            stored = parse_json(name, claim)
            check_json(name, stored, {"owner": str, "machine": str, "process": int})
            owner = uuid.UUID(stored["owner"]).hex
        except (CacheError, ValueError):
            return False
        try:
            beat = self._objects.read(self._beat_of(owner), _LIMIT)
        except CacheError:
            return False
        now = time.monotonic()
        if self._heard.get(owner, (b"", 0.0))[0] != beat:
            self._heard[owner] = beat, now
        here = stored["machine"] == _machine()
        if now - self._heard[owner][1] < EXPIRY and (not here or _runs(stored["process"])):
            return True
        self._objects.delete([self._beat_of(owner)])
        return False


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
