"""Where this process stands among those that were started together."""

import os
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rank:
    """Attributes: rank in 0..world_size-1, of all processes; local_rank in 0..local_world_size-1, of this machine's."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


_NAMES = ("rank", "world_size", "local_rank", "local_world_size")


def this_rank() -> Rank:
    """As torchrun says, or `stand_as`; a process that neither has placed is alone."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Rank(rank=0, world_size=1, local_rank=0, local_world_size=1)
    return Rank(**{name: int(os.environ[name.upper()]) for name in _NAMES})


def stand_as(rank: Rank) -> None:
    """Have this process, which something else than torchrun started, stand where torchrun would have placed it."""
    os.environ["TORCHELASTIC_RUN_ID"] = "none"
    os.environ.update({name.upper(): str(getattr(rank, name)) for name in _NAMES})
