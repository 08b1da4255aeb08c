"""trackio: a database on this machine (`TRACKIO_DIR`), or a Hugging Face Space (`TRACKIO_SPACE_ID`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gdkd_cache.training.reporters.base import Reporter

if TYPE_CHECKING:
    from trackio import Run


class Trackio(Reporter):
    library = "trackio"

    def __init__(self, run: "Run", last_step: int) -> None:
        self._run, self.last_step = run, last_step
        self.hint = f"trackio show --project {run.project}, run {run.name}"

    @classmethod
    def open(cls, folder: Path, name: str, options: Mapping[str, object], first_epoch: int) -> "Reporter":
        raise NotImplementedError
