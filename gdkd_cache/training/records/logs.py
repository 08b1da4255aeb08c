"""The log of a training: what is said while it is prepared is kept until there is a folder for it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path

from gdkd_cache.terminal import Line

_KEPT = 10_000


class KeptLog:
    """What this library logs, of the levels that somebody listens to."""

    def __init__(self) -> None:
        self.handler = MemoryHandler(_KEPT, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
        self.file: logging.Handler | None = None

    def to(self, path: Path) -> None:
        """Add it to a file, and what follows.

        Raises:
            OSError: it cannot be written.
        """
        self.file = logging.FileHandler(path)
        self.file.setFormatter(Line("%(asctime)s %(message)s"))
        self.handler.setTarget(self.file)
        self.handler.flush()
        self.handler.capacity = 1


@contextmanager
def kept_log() -> Iterator[KeptLog]:
    """Keep what is logged in the block."""
    log, logger = KeptLog(), logging.getLogger("gdkd_cache")
    logger.addHandler(log.handler)
    try:
        yield log
    finally:
        logger.removeHandler(log.handler)
        log.handler.close()
        if log.file is not None:
            log.file.close()
