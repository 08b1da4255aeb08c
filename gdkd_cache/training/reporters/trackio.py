"""trackio: a database on this machine (`TRACKIO_DIR`), a Hugging Face Space (`TRACKIO_SPACE_ID`) or a server."""

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from gdkd_cache.training.reporters.base import PROJECT, Reporter, run_id

if TYPE_CHECKING:
    from trackio.run import Run


class Trackio(Reporter):
    """Continues the run of the name that the folder keeps; epochs that trackio has are not told again."""

    package = "trackio"

    def __init__(self, run: "Run", first_epoch: int) -> None:
        self._run = run
        # It writes a moment later, so a kill may cut off what the training has kept; it says only here what it has.
        self.last_step = getattr(run, "_next_step", first_epoch) - 1
        self.hint = f"trackio show --project {run.project}, run {run.name}"

    @classmethod
    def open(cls, folder: Path, name: str, options: Mapping[str, object], first_epoch: int) -> "Reporter":
        import trackio

        unique = f"{name}-{run_id(folder, cls.package, first_epoch)[:8]}"
        with redirect_stdout(io.StringIO()):  # the hint says it
            run = trackio.init(PROJECT, unique, config=dict(options), resume="allow", embed=False)
        return cls(run, first_epoch)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        import trackio

        with redirect_stdout(io.StringIO()):
            trackio.finish()
