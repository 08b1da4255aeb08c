"""Weights & Biases, or, with `WANDB_MODE=offline`, files for `wandb sync` in `FOLDER/wandb`."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gdkd_cache.training.reporters.base import PROJECT, Reporter, run_id

if TYPE_CHECKING:
    from wandb import Run


class WeightsAndBiases(Reporter):
    """Continues the run whose id the folder keeps; without a network, one that goes on is written anew and whole.

    What it writes is on disk only a quarter of a minute later, and a server takes several files for several runs.
    """

    package = "wandb"

    def __init__(self, run: "Run") -> None:
        self._run = run
        if run.offline:
            self.hint = f"wandb sync {Path(run.dir).parent}"
        else:
            self.last_step, self.hint = max(run.starting_step - 1, 0), str(run.url)

    @classmethod
    def open(cls, folder: Path, name: str, options: Mapping[str, object], first_epoch: int) -> "Reporter":
        import wandb

        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=folder,
            id=run_id(folder, cls.package, first_epoch),
            name=name,
            config=dict(options),
            resume="allow",
            # What a training says is not sent: only its figures and options are.
            settings=wandb.Settings(silent=True, console="off"),
        )
        if run.offline:
            for earlier in (folder / "wandb").glob(f"offline-run-*-{run.id}"):
                if earlier != Path(run.dir).parent:
                    shutil.rmtree(earlier)
        return cls(run)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step, commit=True)

    def close(self) -> None:
        self._run.finish()
