"""How much memory is free, for what is kept only where it fits."""

import os
from pathlib import Path

from gdkd_cache.ranks import this_rank

_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""A container's limit and use, in version 2 and 1: /proc/meminfo tells of the whole machine."""


def free_memory() -> int:
    """Bytes of memory that are free for this process, or for each of torchrun's on this machine."""
    free = [_available()]
    for limit, used in _CGROUPS:
        try:
            free.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # there is none, or it is `max`
            continue
    return max(min(free), 0) // this_rank().local_world_size


def _available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # macOS, which does not tell what it could free
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
