"""Weights & Biases, or, with `WANDB_MODE=offline`, files for `wandb sync` in `FOLDER/wandb`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gdkd_cache.training.reporters.base import PROJECT, Reporter, run_id

if TYPE_CHECKING:
    from wandb import Run


class WeightsAndBiases(Reporter):
    """Continues the run whose id the folder keeps."""

    library = "wandb"

    def __init__(self, run: "Run", first_epoch: int) -> None:
        self._run = run
        # Files of an earlier process are not read again; a server tells what it has.
        self.last_step = first_epoch - 1 if run.offline else min(run.starting_step, first_epoch) - 1
        self.hint = run.url or f"wandb sync {Path(run.dir).parent}"

    @classmethod
    def open(cls, folder: Path, name: str, options: Mapping[str, object], first_epoch: int) -> "Reporter":
        import wandb

        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=folder,
            id=run_id(folder, cls.library, first_epoch),
            name=name,
            config=dict(options),
            resume="allow",
            # What a training says is not sent: only its figures and options are.
            settings=wandb.Settings(silent=True, console="off"),
        )
        return cls(run, first_epoch)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step, commit=True)

    def close(self) -> None:
        self._run.finish()
