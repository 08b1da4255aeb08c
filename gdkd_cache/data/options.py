"""The options of rendering; loads no torch, as the command line reads them for help."""

from dataclasses import dataclass
from pathlib import Path

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
        outcome=False,
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class MemoryOptions:
    """Where decoded images are kept."""

    images_in_memory: int | None = option(
        None,
        "Bytes of memory for decoded images: where all are of one size and fit, they are decoded once; 0 for none.",
        least=0,
        unset="a quarter of what is free, for images up to 64x64, or any where the recipe only crops and flips",
        metavar="BYTES",
        outcome=False,
        rare=True,
    )
    decoded: Path | None = option(
        None,
        "Keep the decoded pixels of other images in a file in this folder, on a local disk that has room for them; it "
        "serves all that train from or build with the same images there, and may be deleted.",
        metavar="DIR",
        outcome=False,
        rare=True,
    )
