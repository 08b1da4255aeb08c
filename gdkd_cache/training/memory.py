"""What a training takes of memory, and into how many parts a step is split so that it stays below a limit."""

import ctypes
import gc
import logging
import resource
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gdkd_cache.errors import MismatchError, UsageError, is_out_of_memory

_LOG = logging.getLogger(__name__)
_SHARE = 0.9
"""The part of the limit that a probed step may take: batches come from threads, and free memory lies in pieces."""
_STATUS, _PEAK_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_SAMPLE_SECONDS = 0.001


@dataclass(frozen=True, kw_only=True)
class Accumulation:
    """How a step's images are split.

    Attributes:
        parts: micro-batches a step.
        images: in the largest of them.
        peak_bytes: what the process (on a GPU: torch there) took at most in a probed step of such a micro-batch.
    """

    parts: int
    images: int
    peak_bytes: int


def peak_memory(device: torch.device) -> dict[str, int]:
    """The most memory taken so far, for `metrics.jsonl`.

    Returns:
        `memory_bytes`: resident in this process, without those that decode for it, since it began or since
        `find_accumulation`; on a GPU also `device_memory_bytes`: what torch held of it.
    """
    peak = {"memory_bytes": peak_bytes()}
    if device.type == "cuda":
        peak["device_memory_bytes"] = torch.cuda.max_memory_reserved(device)
    return peak


def peak_bytes() -> int:
    """The most that this process has had resident, likewise."""
    # Where Linux tells it by itself: getrusage there starts from the parent's peak.
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return _of_status("VmHWM") or most


def resident_bytes() -> int | None:
    """What it has resident now; None where the system does not tell."""
    return _of_status("VmRSS")


def normalizes_batches(model: nn.Module) -> bool:
    """Whether a network normalises by the statistics of each batch that it trains on."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def find_accumulation(
    step: Callable[[int], object],
    batch_size: int,
    limit_bytes: int,
    device: torch.device,
    *,
    batch_norm: bool,
) -> Accumulation:
    """The fewest micro-batches of a step with which a training stays below a limit of memory, found by taking steps.

    Of growing sizes: each at most doubles the last one, and none is tried that would go above 90% of the limit if
    memory went on to grow as it did. What torch's generators give afterwards does not change.

    Args:
        step: takes a step of so many images, on a copy of the network that is thrown away: two micro-batches of them
            forward and backward, so that gradients lie in memory while a network runs, and the optimizer's step.
        batch_size: images of a whole step, of this rank.
        limit_bytes: of the whole process on a CPU; on a GPU of what torch holds there.
        device: where the steps compute.
        batch_norm: the network normalises batches, and so needs two images at least in each.

    Raises:
        MismatchError: even the smallest micro-batch takes more.
        UsageError: this system does not tell what a process takes.
    """
    gauge = _DeviceGauge(device) if device.type == "cuda" else _ProcessGauge()
    allowed, limit = int(_SHARE * limit_bytes), _told(limit_bytes)
    parts = max(batch_size // (2 if batch_norm else 1), 1)
    images = -(-batch_size // parts)
    held = gauge.settle()
    if held > allowed:
        raise MismatchError(f"{_told(held)} are taken before the first step, --max-memory is {limit}; raise it")
    peak = _probe(gauge, step, images, device)
    if peak is None or peak > allowed:
        needed = limit if peak is None else _told(int(peak / _SHARE))
        raise MismatchError(
            f"a step of {images} images at a time needs about {needed} or more, --max-memory is {limit}; raise it, or "
            "take a smaller network or --size"
        )
    # What is given back after the first step came with its images; all the rest stays, whatever their number.
    slope = max(peak - gauge.settle(), 0) / images
    while parts > 1:
        reach = images + min(images, int((allowed - peak) / slope) if slope else images)
        fewer = -(-batch_size // reach)
        larger = -(-batch_size // fewer)
        if larger == images:
            break
        gauge.settle()
        found = _probe(gauge, step, larger, device)
        if found is None or found > allowed:
            break
        slope = max(found - peak, 0) / (larger - images)
        parts, images, peak = fewer, larger, found
    gauge.settle()
    split = f"{parts} micro-batches of {images} images a step" if parts > 1 else f"{images} images a step, at once"
    _LOG.info("--max-memory %s: %s (peak about %s)", limit, split, _told(peak))
    if batch_norm and parts > 1:
        _LOG.info("batch normalisation takes its statistics of micro-batches of %d, not of a step's images", images)
    return Accumulation(parts=parts, images=images, peak_bytes=peak)


class _Gauge(ABC):
    @abstractmethod
    def settle(self) -> int:
        """Give back what is free, have the peak count from here, and tell the bytes taken now."""

    @abstractmethod
    def peak(self, call: Callable[[], object]) -> int:
        """The most bytes taken during a call."""


def _probe(gauge: _Gauge, step: Callable[[int], object], images: int, device: torch.device) -> int | None:
    """The most bytes of a step; None where the memory of the device was full."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            return gauge.peak(lambda: step(images))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None


@dataclass(frozen=True)
class _DeviceGauge(_Gauge):
    device: torch.device

    def settle(self) -> int:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_reserved(self.device)

    def peak(self, call: Callable[[], object]) -> int:
        call()
        return torch.cuda.max_memory_reserved(self.device)


class _ProcessGauge(_Gauge):
    """By what Linux tells; where it does not reset its peak, by looking every millisecond."""

    def __init__(self) -> None:
        self._resets = False

    def settle(self) -> int:
        gc.collect()
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # of glibc; others give back by themselves
            trim(0)
        try:
            _PEAK_RESET.write_text("5")
            self._resets = _of_status("VmHWM") is not None
        except OSError:
            self._resets = False
        return _resident()

    def peak(self, call: Callable[[], object]) -> int:
        if self._resets:
            call()
            return peak_bytes()
        return _sampled_peak(call)


def _sampled_peak(call: Callable[[], object]) -> int:
    most, done = _resident(), threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(_SAMPLE_SECONDS):
            most = max(most, _resident())

    thread = threading.Thread(target=watch, name="watch-memory")
    thread.start()
    try:
        call()
    finally:
        done.set()
        thread.join()
    return max(most, _resident())


def _resident() -> int:
    found = resident_bytes()
    if found is None:
        raise UsageError("--max-memory needs Linux, or a GPU: this system does not tell what a process takes")
    return found


def _of_status(name: str) -> int | None:
    """Bytes of a line of Linux's status of this process; None where there is none."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _told(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
