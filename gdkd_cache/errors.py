"""What this library raises when the user, a file or a machine is at fault.

Every message is one line: which thing, what was found, what was expected, what to do.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class GdkdCacheError(Exception):
    """Base of all errors of this library; the command line prints its message and exits with 1."""


class UsageError(GdkdCacheError, ValueError):
    """An option, spec or argument is wrong in itself, whatever the data; the command line exits with 2."""


class SourceError(GdkdCacheError):
    """A dataset is missing, unreadable or not in the layout that its spec promises."""


class ModelError(GdkdCacheError):
    """A model or its weights cannot be built, or do not fit the data."""


class CacheError(GdkdCacheError):
    """A cache is missing, incomplete, damaged or of an unknown format."""


class MismatchError(GdkdCacheError):
    """Two things that must belong together do not: a cache and a source, a build and its folder."""


class NotServedError(GdkdCacheError):
    """A cache does not hold what the requested loss needs."""


class StoreError(GdkdCacheError):
    """An object store cannot be reached, refuses, or does not keep what it was given."""


@contextmanager
def naming(what: object) -> Iterator[None]:
    """Let an OSError in the block say what it is about: a full disk does not tell which file was written.

    Raises:
        OSError: as the block does, with a file name.
    """
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(what)
        raise
