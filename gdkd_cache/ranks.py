"""Where this process stands among those that torchrun started."""

import os
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rank:
    """Attributes: rank in 0..world_size-1, of all processes; local_rank in 0..local_world_size-1, of this machine's."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def this_rank() -> Rank:
    """As torchrun says; a process that it has not started is alone."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Rank(rank=0, world_size=1, local_rank=0, local_world_size=1)
    names = ("rank", "world_size", "local_rank", "local_world_size")
    return Rank(**{name: int(os.environ[name.upper()]) for name in names})
