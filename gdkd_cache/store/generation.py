"""Whose a place is: what one build, or one copy, writes there ends when the place is given to another.

A place belongs to the build that `build.json` names or, once that is gone, to the one whose manifest stands. Only
`Place.begin` gives it to another, alone in the place, so that no write of the former one, however long its process was
stopped in the midst of it, comes after. (In an object store each write depends on what stood there before; removals
cannot, so there one that is stopped for long in the midst of removing may do harm.)
"""

from collections.abc import Callable, Iterable

from gdkd_cache.errors import CacheError, MismatchError
from gdkd_cache.objects.objects import WritableObjects
from gdkd_cache.store.manifest import BUILD_NAME, MANIFEST_LIMIT, MANIFEST_NAME, Manifest


class Generation:
    """One build of a place, or one copy into it."""

    def __init__(self, objects: WritableObjects, digest: str, digest_of: Callable[[Manifest], str]) -> None:
        """Look at nothing yet; see `of_build` and `of_cache`."""
        self._objects, self._digest, self._digest_of = objects, digest, digest_of
        self._own: dict[str, str] = {}

    @classmethod
    def of_build(cls, objects: WritableObjects, manifest: Manifest) -> "Generation":
        """A build, of which all that its processes know from the start is the same: `Manifest.begun`."""
        return cls(objects, manifest.begun.digest, lambda stored: stored.begun.digest)

    @classmethod
    def of_cache(cls, objects: WritableObjects, manifest: Manifest) -> "Generation":
        """One very cache: a copy into the place, or what stands there."""
        return cls(objects, manifest.digest, lambda stored: stored.digest)

    def check(self) -> None:
        """Make sure that the place is still this one's.

        Raises:
            MismatchError: it was given to another.
        """
        # In this order: build.json goes once the manifest stands.
        if not (self._is_own(BUILD_NAME) or self._is_own(MANIFEST_NAME)):
            raise MismatchError(
                f"{self._objects.location} was given to another build, with --force, while this one ran: it ends here; "
                "to have both, name another place for one of them"
            )

    def published(self) -> bool:
        """Whether its manifest stands.

        Raises:
            MismatchError: as `check`.
        """
        if self._is_own(MANIFEST_NAME):
            return True
        self.check()
        return False

    def tidy(self, leftovers: Callable[[], Iterable[str]]) -> None:
        """Remove what only unfinished work needs, once the manifest stands."""
        with self._objects.alone():
            # Another's build.json beside it is of a process that died before the place was its own.
            if self._is_own(MANIFEST_NAME):
                self._objects.delete([*leftovers(), BUILD_NAME])
                self._objects.sweep()

    def _is_own(self, name: str) -> bool:
        stamp = self._objects.stamp(name)
        if stamp is None or self._own.get(name) == stamp:
            return stamp is not None
        try:
            stored = Manifest.from_bytes(self._objects.read(name, MANIFEST_LIMIT), name)
        except CacheError:
            return False
        if self._digest_of(stored) == self._digest:
            self._own[name] = stamp
        return name in self._own and self._own[name] == stamp
