"""Progress of long work: a live bar on a terminal, a plain line every few seconds elsewhere, on stderr."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


class _Throughput(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f} {self._unit}/s")


@contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Show progress while the block runs (of several ranks, the first); call what it yields with each amount done.

    Args:
        what: what is being done.
        total: the amount that is all of it.
        unit: plural of what is counted, such as `images`.
    """
    if this_rank().rank:
        yield lambda amount: None
        return
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            _Throughput(unit),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(printable(what), total=total)
            yield lambda amount: bar.advance(task, amount)
        return
    start = shown = time.monotonic()
    done = 0

    def advance(amount: int) -> None:
        nonlocal done, shown
        done += amount
        now = time.monotonic()
        if now - shown >= _PLAIN_INTERVAL:
            shown = now
            rate = done / (now - start)
            left = f", {(total - done) / rate:.0f} s left" if done else ""
            say(f"{what}: {done}/{total} {unit}, {rate:,.0f} {unit}/s{left}", error=True)

    yield advance
