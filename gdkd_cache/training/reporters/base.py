"""What shows the figures of a training: the interface, and what several of them need."""

import importlib.util
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from gdkd_cache.errors import UsageError
from gdkd_cache.files import read_bounded

PROJECT = "gdkd-cache"
"""The project of runs, for services that have projects and where the environment names none."""
_ID = re.compile(r"[0-9a-f]{32}")


class Reporter(ABC):
    """One place where figures are shown; it may fail in any way, and is then used no more.

    Attributes:
        package: what must be installed, also the name of the extra that brings it; empty for nothing.
        last_step: the largest step that it holds from before, 0 for none; it is given no step twice.
        hint: where to look, in a line.
    """

    package: ClassVar[str] = ""
    last_step: int = 0
    hint: str = ""

    @classmethod
    @abstractmethod
    def open(cls, folder: Path, name: str, options: Mapping[str, object], first_epoch: int) -> "Reporter":
        """Begin a run, or go on with the one of an earlier process.

        Args:
            folder: of the training; it exists.
            name: of the run, for people.
            options: what the training is run with: texts, numbers, flags, None and lists of them.
            first_epoch: the next one, from 1; larger where a training goes on, whose run must be found again.
        """

    @abstractmethod
    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Show what an epoch gave.

        Args:
            step: the epoch, from 1; steps rise.
            values: finite numbers by name.
        """

    @abstractmethod
    def close(self) -> None:
        """Have all that was reported be kept."""

    @classmethod
    def require(cls) -> None:
        """Look whether it can be used here; loads nothing.

        Raises:
            UsageError: its library is not installed.
        """
        if cls.package and importlib.util.find_spec(cls.package) is None:
            raise UsageError(
                f"report to {cls.package} needs {cls.package}, which is not installed: "
                f"pip install 'gdkd-cache[{cls.package}]'"
            )


def run_id(folder: Path, library: str, first_epoch: int) -> str:
    """The id of a training's run, 32 hexadecimal digits, kept in its folder; a training that begins gets a new one."""
    path = folder / f"{library}-run.txt"
    if first_epoch > 1 and path.exists():
        found = read_bounded(path, 64, "run id", UsageError).decode(errors="replace").strip()
        if _ID.fullmatch(found):
            return found
    made = uuid.uuid4().hex
    path.write_text(made)
    return made
