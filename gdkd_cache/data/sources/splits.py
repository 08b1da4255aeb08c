"""Which parts of a folder the train and the test split are: by custom, or as a spec says."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from gdkd_cache.errors import UsageError
from gdkd_cache.fields import check_fields, option, parse_fields

_TEST = ("val", "valid", "validation", "test")
_SETTINGS = re.compile(r"(?P<path>.+?):(?P<settings>\w+=[^:]*)")


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The names of the splits in PATH.

    Raises:
        UsageError: a name that leads out of PATH.
    """

    train: str = option("train", "The train split.")
    test: str | None = option(None, "The test split.", unset=f"the first there of {', '.join(_TEST)}")

    def __post_init__(self) -> None:
        check_fields(self)
        for name in (self.train, self.test or ""):
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise UsageError(f"split {name!r} must lie in PATH")

    def candidates(self, split: str) -> list[str]:
        """What `train` or `test` may be called, in the order of preference."""
        return [self.train] if split == "train" else [self.test] if self.test else list(_TEST)


Settings = TypeVar("Settings", bound=Splits)


def parted(kind: str, text: str, settings: type[Settings]) -> tuple[Path, Settings]:
    """Cut `PATH:key=value,key=value` into the folder and its settings, which may be left out.

    Raises:
        UsageError: an unknown key, or a value that is not allowed.
    """
    stated = _SETTINGS.fullmatch(text)
    folder = Path(stated["path"] if stated else text)
    return folder, parse_fields(settings, kind, stated["settings"] if stated else None)
