"""What an attack is: one command line over files that an attacker made, and what may come of it."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from attacks.kit import Kit

One = TypeVar("One")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One attack, prepared.

    Attributes:
        command: arguments of gdkd-cache; it runs in the attack's folder.
        refuse: whether success (exit 0) is wrong in itself; else it may be refused or held.
        after: given the exit code, what is wrong with what the command left; None where nothing is.
        then: a second command, which must succeed where the first one did.
        kill: seconds after which the command is killed, if it has not ended.
        seconds: after so many the command hangs.
    """

    command: Sequence[object]
    refuse: bool = False
    after: Callable[[int], str | None] = field(default=lambda code: None)
    then: Sequence[object] | None = None
    kill: float | None = None
    seconds: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Attack:
    """What a family makes a case of.

    Attributes:
        kit: files that are whole, not to be changed.
        place: an empty folder, for what the case changes.
        number: how many cases of the family came before.
        rng: of this case alone.
    """

    kit: Kit
    place: Path
    number: int
    rng: random.Random

    def next_of(self, options: Sequence[One]) -> One:
        """Each of some options in turn."""
        return options[self.number % len(options)]


Family = Callable[[Attack], Case]
