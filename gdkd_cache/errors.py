"""What this library raises when the user, a file or a machine is at fault.

Every message is one line: which thing, what was found, what was expected, what to do.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

_LIBRARIES = {"gdkd_cache", "gdkd_cache_cli", "torch", "torchvision", "timm", "transformers"}


class GdkdCacheError(Exception):
    """Base of all errors of this library; the command line prints its message and exits with 1."""


class UsageError(GdkdCacheError, ValueError):
    """An option, spec or argument is wrong in itself, whatever the data; the command line exits with 2."""


class SourceError(GdkdCacheError):
    """A dataset is missing, unreadable or not in the layout that its spec promises."""


class ModelError(GdkdCacheError):
    """A model or its weights cannot be built, do not fit the data, or give numbers that are not finite."""


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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is full, the machine's or a GPU's: no fault of what was computed or read."""
    said = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(t in str(error) for t in said))


def first_line(error: BaseException) -> str:
    """What a library says of a failure, on one line and not at length; its kind too where the text alone is obscure."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    obscure = not text or isinstance(error, LookupError | TypeError | AttributeError | ArithmeticError)
    line = ": ".join(filter(None, (type(error).__name__, text))) if obscure else text
    return line if len(line) <= 200 else f"{line[:197]}..."


def raised(error: BaseException) -> str:
    """As `first_line`, of what code of the user's may have raised: with its module and line, where it stands there."""
    frames = ((frame.f_globals.get("__name__", ""), line) for frame, line in traceback.walk_tb(error.__traceback__))
    own = [(module, line) for module, line in frames if module.partition(".")[0] not in _LIBRARIES]
    return f"{first_line(error)} (in {own[-1][0]}, line {own[-1][1]})" if own else first_line(error)
