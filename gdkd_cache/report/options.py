"""The options of a contact sheet; loads no torch, as the command line reads them for help."""

from dataclasses import dataclass

from gdkd_cache.errors import UsageError
from gdkd_cache.fields import check_fields, option

DEFAULT_VIEWS = 4
_MOST_ROWS = 64
_MOST_VIEWS = 16


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """What to show.

    Raises:
        UsageError: a number out of range.
    """

    rows: int = option(6, "Images, spread evenly over the data; at most 64.")
    keys: tuple[str, ...] = option((), "Show the image of this key instead; may be repeated.", flag="--key")
    views: tuple[int, ...] | None = option(
        None, "Which views, at most 16.", unset="the first four", metavar="V,V,...", joined=True
    )
    temperature: float = option(1.0, "Of the probabilities shown.", above=0)

    def __post_init__(self) -> None:
        check_fields(self)
        for name, count, most in (
            ("rows", len(self.keys) or self.rows, _MOST_ROWS),
            ("views", DEFAULT_VIEWS if self.views is None else len(self.views), _MOST_VIEWS),
        ):
            if not 1 <= count <= most:
                raise UsageError(f"{count} {name} to show; it must be 1..{most}")
