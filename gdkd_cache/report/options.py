"""The options of a contact sheet; loads no torch, as the command line reads them for help."""

from dataclasses import dataclass

from gdkd_cache.errors import UsageError
from gdkd_cache.fields import check_fields, option

_MOST_ROWS = 64
_MOST_VIEWS = 16


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
