"""Progress of long work: a live bar on a terminal, a plain line every few seconds elsewhere, on stderr."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from gdkd_cache.ranks import this_rank
from gdkd_cache.terminal import printable, say

_PLAIN_INTERVAL = 10.0
_PATIENCE = 5.0
_TICK = 1.0


class _Throughput(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f} {self._unit}/s")


@runtime_checkable
class Advance(Protocol):
    """Takes note of an amount that was done, and of what is to stand beside it."""

    def __call__(self, amount: int, note: str = "", /) -> None: ...


@contextmanager
def progress(what: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
    """Show progress while the block runs (of several ranks, the first); call what it yields with each amount done.

    Args:
        what: what is being done.
        total: the amount that is all of it.
        unit: plural of what is counted, such as `images`.
        done: the amount that was done before.
    """
    if this_rank().rank:
        yield lambda amount, note="": None
        return
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            _Throughput(unit),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(printable(what), total=total, completed=done, note="")
            yield lambda amount, note="": bar.update(task, advance=amount, note=printable(note))
        return
    start = shown = time.monotonic()
    before = done

    def advance(amount: int, note: str = "", /) -> None:
        nonlocal done, shown
        done += amount
        now = time.monotonic()
        if now - shown >= _PLAIN_INTERVAL:
            shown = now
            rate = (done - before) / (now - start)
            left = f", {(total - done) / rate:.0f} s left" if rate else ""
            beside = f", {note}" if note else ""
            say(f"{what}: {done}/{total} {unit}, {rate:,.0f} {unit}/s{left}{beside}", error=True)

    yield advance


class _Wait:
    """One thing that is waited for, and how many bytes came of it."""

    def __init__(self, what: str) -> None:
        self.what, self.start, self.amount = what, time.monotonic(), 0

    def got(self, amount: int) -> None:
        self.amount += amount


class _Watch:
    """Says every few seconds what this process has waited for longest; its thread runs only while it waits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waits: list[_Wait] = []  # in the order in which they began
        self._thread: threading.Thread | None = None

    def add(self, wait: _Wait) -> None:
        with self._lock:
            self._waits.append(wait)
            if self._thread is None or not self._thread.is_alive():  # it does not outlive a fork
                self._thread = threading.Thread(target=self._run, name="watch-waits", daemon=True)
                self._thread.start()

    def remove(self, wait: _Wait) -> None:
        with self._lock:
            self._waits.remove(wait)

    def _run(self) -> None:
        said = float("-inf")
        while True:
            time.sleep(_TICK)
            with self._lock:
                if not self._waits:
                    self._thread = None
                    return
                oldest, others = self._waits[0], len(self._waits) - 1
            now = time.monotonic()
            if now - oldest.start >= _PATIENCE and now - said >= _PLAIN_INTERVAL:
                said = now
                more = f", and for {others} more" if others else ""
                amount, seconds = f"{oldest.amount:,} bytes so far", f"{now - oldest.start:.0f} s"
                say(f"{oldest.what}{more}: {amount}, {seconds}", error=True)


_WATCH = _Watch()


@contextmanager
def waiting(what: str) -> Iterator[Callable[[int], None]]:
    """Let a line say every few seconds, after the first ones, that the block still waits for another machine.

    Args:
        what: what it waits for.

    Yields:
        What is called with each number of bytes that came.
    """
    if this_rank().rank:
        yield lambda amount: None
        return
    wait = _Wait(what)
    _WATCH.add(wait)
    try:
        yield wait.got
    finally:
        _WATCH.remove(wait)
