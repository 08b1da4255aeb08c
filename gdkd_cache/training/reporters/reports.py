"""The reporters of one training: each gets every epoch once, and none can stop the training."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

from gdkd_cache.errors import GdkdCacheError, first_line
from gdkd_cache.ranks import this_rank
from gdkd_cache.training.reporters.base import Reporter
from gdkd_cache.training.reporters.registry import REPORTERS

_LOG = logging.getLogger(__name__)


def require_reporters(names: Sequence[str]) -> None:
    """Look whether all can be used, before a training does anything.

    Raises:
        UsageError: an unknown name, or a library that is not installed.
    """
    for name in names:
        REPORTERS.load(name).require()


class Reports:
    """What reports the epochs of one training; of several ranks the first does.

    Args:
        names: of reporters.
        folder: of the training; it exists.
        name: of the run, for people.
        options: what the training is run with; what is no plain value is told as text.
        lines: of `metrics.jsonl`, of the epochs before: what a reporter lacks of them it is given.

    Raises:
        UsageError: an unknown name, or a library that is not installed.
        GdkdCacheError: a reporter cannot begin, and the training has not begun either; one that goes on does without.
    """

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        *,
        name: str,
        options: Mapping[str, object],
        lines: Sequence[Mapping[str, object]] = (),
    ) -> None:
        require_reporters(names)
        self._reporters: dict[str, Reporter] = {}
        if this_rank().rank:
            return
        stated = {key: _plain(value) for key, value in options.items()}
        for kind in names:
            try:
                opened = REPORTERS.load(kind).open(folder, name, stated, len(lines) + 1)
            except Exception as error:  # of others' libraries, networks and disks
                if not lines:
                    raise GdkdCacheError(
                        f"report to {kind} cannot begin ({first_line(error)}); mend it, or leave --report-to {kind} out"
                    ) from error
                _LOG.warning("report to %s cannot go on (%s): the training does without", kind, first_line(error))
                continue
            _LOG.info("report to %s: %s", kind, opened.hint)
            self._reporters[kind] = opened
        for line in lines:
            self.report(line)

    def report(self, line: Mapping[str, object]) -> None:
        """Tell all of an epoch.

        Args:
            line: as in `metrics.jsonl`: `epoch`, from 1, and values by name, of which finite numbers are told.
        """
        step = line["epoch"]
        assert isinstance(step, int)
        values = {name: float(value) for name, value in line.items() if name != "epoch" and _is_number(value)}
        for kind, reporter in list(self._reporters.items()):
            if step > reporter.last_step:
                self._guarded(kind, lambda reporter=reporter: reporter.report(step, values))

    def close(self) -> None:
        """Have all that was reported be kept."""
        for kind, reporter in list(self._reporters.items()):
            self._guarded(kind, reporter.close)
        self._reporters.clear()

    def _guarded(self, kind: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # of others' libraries, networks and disks
            _LOG.warning("report to %s failed (%s): it gets no more", kind, first_line(error))
            del self._reporters[kind]


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _plain(value: object) -> object:
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
