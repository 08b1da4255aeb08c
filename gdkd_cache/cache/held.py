"""Which views lie in memory: that of the epoch with the next one on its way, or all of them."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

from gdkd_cache.cache.view import View
from gdkd_cache.errors import UsageError
from gdkd_cache.store.reader import CacheReader
from gdkd_cache.threads import one_worker

_LOG = logging.getLogger(__name__)
_RESIDENT_BYTES = 2**28
"""Views stay in memory, so as to be read once, where all together need no more than this."""
_MOST_BYTES = 2**32
"""Of views that must all be there at once."""


class HeldViews:
    """The views that epochs show, in turn, of one cache or of several alike.

    Attributes:
        numbers: of the views, in the order of the epochs.
    """

    def __init__(self, caches: Sequence[CacheReader], numbers: Sequence[int]) -> None:
        self.numbers = tuple(numbers)
        self._caches = caches
        self._executor = one_worker("prefetch-view")
        self._loaded: dict[int, Future[list[View]]] = {}
        self._all_fit: bool | None = None  # not known before a view has been loaded

    def number(self, epoch: int) -> int:
        """Which view an epoch shows."""
        return self.numbers[epoch % len(self.numbers)]

    def _load(self, number: int) -> Future[list[View]]:
        def load() -> list[View]:
            return [View(cache, number) for cache in self._caches]

        if number not in self._loaded:
            self._loaded[number] = self._executor.submit(load)
        return self._loaded[number]

    def first(self) -> list[View]:
        """The view of epoch 0 of each cache, which stays until that epoch."""
        return self._load(self.number(0)).result()

    def of_epoch(self, epoch: int) -> list[View]:
        """An epoch's view of each cache, with the next one on its way; others are dropped, unless all have room."""
        number, upcoming = self.number(epoch), self.number(epoch + 1)
        if self._all_fit is not True:
            self._loaded = {view: future for view, future in self._loaded.items() if view in (number, upcoming)}
        views = self._load(number).result()
        if self._all_fit is None:
            size = sum(view.nbytes for view in views)
            self._all_fit = size * len(set(self.numbers)) <= _RESIDENT_BYTES
            kept = "all are kept" if self._all_fit else "they are read again whenever they come round"
            _LOG.info("a view takes %.3g MB of memory; %s", size / 1e6, kept)
        self._load(upcoming)
        return views

    def hold_all(self) -> None:
        """Keep all views from now on, as batches need whose rows are of several.

        Raises:
            UsageError: they take more than 4 GiB.
            CacheError: a view's data is damaged.
        """
        size = sum(view.nbytes for view in self.first()) * len(self.numbers)
        if size > _MOST_BYTES:
            raise UsageError(
                f"the {len(self.numbers)} views of {self._caches[0].path} take {size / 1e9:.3g} GB of memory, and "
                f"batches whose rows are of several views need them all in at most {_MOST_BYTES / 1e9:.3g} GB; choose "
                "fewer with --views"
            )
        self._all_fit = True
        for number in self.numbers:
            self._load(number)

    def all(self) -> Mapping[int, list[View]]:
        """All views, by number.

        Raises:
            UsageError, CacheError: as `hold_all`.
        """
        self.hold_all()
        return {number: self._load(number).result() for number in self.numbers}
