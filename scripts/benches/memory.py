"""What this process takes of memory; Linux tells it. Loads nothing, so that it can be measured with any code."""

import ctypes
import gc
from pathlib import Path


def resident() -> int:
    """Bytes that it has now, what is free given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def begin_peak() -> int:
    """Have the peak count from here, and give the bytes that it begins with."""
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")
    return before


def peak() -> int:
    """The most bytes that it has had since."""
    return _status("VmHWM")


def _status(name: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) * 1024
