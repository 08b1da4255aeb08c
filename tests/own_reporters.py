"""Reporters as users may write them."""

from collections.abc import Mapping
from pathlib import Path

from gdkd_cache.training.reporters.base import Reporter

SEEN: list[int] = []
"""Steps that the last opened one was asked to report."""


class Breaking(Reporter):
    """Works for a step, then never again."""

    @classmethod
    def open(cls, folder: Path, name: str, options: Mapping[str, object], first_epoch: int) -> "Reporter":
        SEEN.clear()
        return cls()

    def report(self, step: int, values: Mapping[str, float]) -> None:
        SEEN.append(step)
        if step > 1:
            raise ConnectionError("no route to host")

    def close(self) -> None:
        raise AssertionError


class Closed(Reporter):
    """Cannot even begin."""

    @classmethod
    def open(cls, folder: Path, name: str, options: Mapping[str, object], first_epoch: int) -> "Reporter":
        raise ConnectionError("no route to host")

    def report(self, step: int, values: Mapping[str, float]) -> None:
        raise AssertionError

    def close(self) -> None:
        raise AssertionError
