"""The options of a contact sheet and of a report; loads no torch, as the command line reads them for help."""

from dataclasses import dataclass
from pathlib import Path

from gdkd_cache.errors import UsageError
from gdkd_cache.fields import check_fields, option
from gdkd_cache.limits import LARGEST_FACTOR, LEAST_TEMPERATURE

_MOST_ROWS = 64
_MOST_VIEWS = 16
_MOST_RUNS = 64
_MOST_CLASSES = 12


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """What to show.

    Raises:
        UsageError: a number out of range.
    """

    rows: int = option(6, "Images, spread evenly over the data.", least=1, most=_MOST_ROWS)
    keys: tuple[str, ...] = option(
        (), f"Show the image of this key instead; may be repeated, at most {_MOST_ROWS} times.", flag="--key"
    )
    views: tuple[int, ...] | None = option(
        None, f"Which views, at most {_MOST_VIEWS}.", unset="the first four", metavar="V,V,...", joined=True
    )
    temperature: float = option(1.0, "Of the probabilities shown.", above=0)

    def __post_init__(self) -> None:
        check_fields(self)
        if len(self.keys) > _MOST_ROWS:
            raise UsageError(f"{len(self.keys)} keys to show; at most {_MOST_ROWS} rows")
        if self.views is not None and not 1 <= len(self.views) <= _MOST_VIEWS:
            raise UsageError(f"{len(self.views)} views to show; it must be 1..{_MOST_VIEWS}")


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What a report is of, beside its cache.

    Raises:
        UsageError: too many, or a number out of range.
    """

    runs: tuple[Path, ...] = option(
        (),
        f"A training, by the folder that it was written to; may be repeated, at most {_MOST_RUNS} times.",
        flag="--run",
        metavar="DIR",
    )
    classes: tuple[str, ...] = option(
        (),
        "A class whose average prediction is drawn, by name; may be repeated.",
        flag="--class",
        metavar="NAME",
        unset="a few that differ",
    )
    temperature: float = option(
        4.0, "T of these predictions and of gradients.", least=LEAST_TEMPERATURE, most=LARGEST_FACTOR
    )

    def __post_init__(self) -> None:
        check_fields(self)
        for what, given, most in (("runs", self.runs, _MOST_RUNS), ("classes", self.classes, _MOST_CLASSES)):
            if len(given) > most:
                raise UsageError(f"{len(given)} {what} to report; at most {most}")
