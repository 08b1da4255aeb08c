"""Signals that end a training, and the times to save it: between two steps, and all ranks at the same one."""

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed

from gdkd_cache.training.amounts import Interval
from gdkd_cache.training.distributed import rank_and_size

_LOG = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""What ends a training: asked to stop, interrupted, and Slurm's warning (`#SBATCH --signal=USR1@120`)."""
_AGREE_STEPS = 8
"""Several ranks ask each other after so many steps."""


class Stop:
    """Whether a signal has come; the second one is not held back."""

    def __init__(self) -> None:
        self.signal: int | None = None


@contextmanager
def held_back() -> Iterator[Stop]:
    """Hold back the first signal that ends a training, until the block is left; then it does what it did before.

    Only the main thread can hear signals; elsewhere none is held back. Those that are ignored stay so.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {one: handler for one in _SIGNALS if (handler := signal.getsignal(one)) != signal.SIG_IGN}

    def back() -> None:
        for one, handler in before.items():
            signal.signal(one, signal.SIG_DFL if handler is None else handler)

    def heard(number: int, frame: object) -> None:
        back()
        stop.signal = number
        _LOG.info("%s: saving after this step, then ending", signal.Signals(number).name)

    for one in before:
        signal.signal(one, heard)
    try:
        yield stop
    finally:
        back()
    if stop.signal is not None:
        signal.raise_signal(stop.signal)


class Due:
    """When a training must be saved or end, alike on all ranks.

    Args:
        stop: the signal of this rank.
        every: save after so many steps or seconds; None for neither.
        device: where ranks sum up.
    """

    def __init__(self, stop: Stop, every: Interval | None, device: torch.device) -> None:
        self._stop, self._device = stop, device
        self._steps, self._seconds = (None, None) if every is None else (every.steps, every.seconds)
        self._saved_at, self._since = time.monotonic(), 0

    def __call__(self, steps: int) -> tuple[bool, bool]:
        """After so many steps of an epoch: whether to save, and whether to end."""
        self._since += 1
        by_steps = self._steps is not None and self._since > self._steps
        by_time = self._seconds is not None and time.monotonic() - self._saved_at >= self._seconds
        end = self._stop.signal is not None
        if rank_and_size()[1] > 1:
            if steps % _AGREE_STEPS and not by_steps:
                return False, False
            end, by_time = self._agreed(end, by_time)
        return by_steps or by_time or end, end

    def ending(self) -> bool:
        """Whether to end, asked where all ranks ask."""
        return self._agreed(self._stop.signal is not None)[0]

    def saved(self) -> None:
        """Take note that it was just saved."""
        self._saved_at, self._since = time.monotonic(), 0

    def _agreed(self, *wishes: bool) -> list[bool]:
        """What any rank wishes."""
        if rank_and_size()[1] == 1:
            return list(wishes)
        told = torch.tensor([float(wish) for wish in wishes], device=self._device)
        distributed.all_reduce(told, distributed.ReduceOp.MAX)
        return [bool(value) for value in told.tolist()]
