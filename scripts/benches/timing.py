"""Things timed in turn on one machine in one run, and their ratios."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What a row is run with.

    Attributes:
        repeats: how often each thing is timed.
        smoke: only see that the row runs: the smallest sizes.
        device: where to compute.
        folder: for files.
        jpegs: photographs to render, a folder or a tar file; None for some of our own.
        shards: images to stream, as after `wds:`; None for some of our own.
        logits: files of a teacher's logits, to be sized, as for `logits_in`; none for made ones.
        targets: gradient errors that sized caches are to meet; none for the usual ones.
        drawings: where drawings and their tables go; None for nowhere.
    """

    repeats: int
    smoke: bool
    device: torch.device
    folder: Path
    jpegs: Path | None = None
    shards: str | None = None
    logits: Sequence[str] = ()
    targets: Sequence[float] = ()
    drawings: Path | None = None

    def seconds(self, things: Mapping[str, Callable[[], object]], *, least: float = 0.2) -> dict[str, list[float]]:
        """Seconds of one call of each, by name, as often as `repeats` says, in turn.

        Args:
            things: what to call; each once before it is timed.
            least: calls are timed together until they take so many seconds.
        """
        calls = {name: 1 if self.smoke else self._calls(call, least) for name, call in things.items()}
        times: dict[str, list[float]] = {name: [] for name in things}
        for _ in range(self.repeats):
            for name, call in things.items():
                start = time.perf_counter()
                for _ in range(calls[name]):
                    call()
                self._wait()
                times[name].append((time.perf_counter() - start) / calls[name])
        return times

    def _calls(self, call: Callable[[], object], least: float) -> int:
        call()
        self._wait()
        start = time.perf_counter()
        call()
        self._wait()
        return max(1, round(least / max(time.perf_counter() - start, 1e-9)))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One ratio.

    Attributes:
        what, against: what is divided by what.
        ratios: one a repetition.
        goal: as text, such as `<= 1.1`; empty where there is none.
    """

    what: str
    against: str
    ratios: Sequence[float]
    goal: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)

    @property
    def met(self) -> bool | None:
        """Whether the median meets the goal; None without one."""
        if not self.goal:
            return None
        sign, bound = self.goal.split()
        return self.median <= float(bound) if sign == "<=" else self.median >= float(bound)


def ratios(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """Repetition by repetition: what drifts, drifts in both."""
    return [a / b for a, b in zip(one, other, strict=True)]
