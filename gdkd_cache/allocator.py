"""The allocator of glibc, told to keep the memory that a network's layers free: the next ones ask for it again."""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""From glibc's malloc.h."""
_LARGEST = (2**30, 2**25)
"""Bytes of an allocation that is kept; glibc before 2.35 refuses more than the second."""
_UNTRIMMED = 2**31 - 1


def keep_memory() -> bool:
    """Have glibc keep what this process frees, up to 1 GiB at once, rather than give it back to the system.

    By itself it returns each large tensor when it is freed, and the system clears every page of the next one: that
    takes a tenth to a half of a network's time on a CPU. The process then holds as much as it once needed, until it
    ends.

    Nothing happens, and False is returned, with another C library (macOS, Windows, musl), and where the user has set up
    the allocator: `MALLOC_...` or `glibc.malloc` in `GLIBC_TUNABLES`, in the environment.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    kept = any(library.mallopt(_M_MMAP_THRESHOLD, size) for size in _LARGEST)
    return kept and bool(library.mallopt(_M_TRIM_THRESHOLD, _UNTRIMMED))
