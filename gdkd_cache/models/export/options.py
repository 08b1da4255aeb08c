"""The options of an export; loads no torch, as the command line reads them for help."""

from dataclasses import dataclass
from pathlib import Path

from gdkd_cache.fields import check_fields, option
from gdkd_cache.limits import LARGEST_SIDE
from gdkd_cache.models.export.registry import FORMATS

_SUMMARIES = "; ".join(f"{form}, {summary}" for form, summary in FORMATS.summaries().items())
NORMALIZED, PIXELS = "normalized", "pixels"


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a network is exported, and to where.

    Raises:
        UsageError: a value out of range.
    """

    out: Path = option(help="The file to write: whole, or not at all.", metavar="FILE")
    format: str | None = option(
        None,
        f"What it becomes: {_SUMMARIES}; or package.module:name for a format of your own.",
        unset="as the end of --out says",
        metavar="FORMAT",
    )
    input: str = option(
        NORMALIZED,
        f"What the exported program takes, float32 [batch, 3, height, width]: images that are {NORMALIZED} with the "
        f"network's mean and deviation, or {PIXELS} in 0..1, which it then normalises itself.",
        choices=(NORMALIZED, PIXELS),
    )
    size: int | None = option(
        None,
        "Side of the images, in pixels.",
        least=1,
        most=LARGEST_SIDE,
        unset="as the weights' card, or the network's library, says",
    )
    force: bool = option(False, "Replace a file of that name.")

    def __post_init__(self) -> None:
        check_fields(self)
