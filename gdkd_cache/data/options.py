"""The options of rendering; loads no torch, as the command line reads them for help."""

from dataclasses import dataclass

from gdkd_cache.fields import check_fields, option
from gdkd_cache.limits import MOST_WORKERS


@dataclass(frozen=True, kw_only=True)
class RenderOptions:
    """Where views are rendered."""

    num_workers: int | None = option(
        None,
        "Processes that render.",
        least=0,
        most=MOST_WORKERS,
        unset="0 for images in memory, else one a core, at most 8",
        flag="--workers",
    )

    def __post_init__(self) -> None:
        check_fields(self)
