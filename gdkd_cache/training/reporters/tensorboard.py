"""TensorBoard's event files, in `FOLDER/tensorboard`."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gdkd_cache.training.reporters.base import Reporter

if TYPE_CHECKING:
    pass


class TensorBoard(Reporter):
    """Writes a file of events; one that goes on writes another, which voids what the first has beyond its beginning."""

    package = "tensorboard"

    def __init__(self, folder: Path, last_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.last_step, self.hint = last_step, f"tensorboard --logdir {folder}"
        self._writer: SummaryWriter = SummaryWriter(str(folder), purge_step=last_step + 1)

    @classmethod
    def open(cls, folder: Path, name: str, options: Mapping[str, object], first_epoch: int) -> "Reporter":
        folder = folder / "tensorboard"
        opened = cls(folder, min(_last_step(folder), first_epoch - 1))
        if first_epoch == 1:
            stated = json.dumps({"name": name, **options}, indent=1, default=str)
            opened._writer.add_text("options", f"```\n{stated}\n```", 0)
        return opened

    def report(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _last_step(folder: Path) -> int:
    """The last epoch that is on disk."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    if not folder.is_dir():
        return 0
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of each time that a training went on
    held = EventAccumulator(str(folder), size_guidance={SCALARS: 1}).Reload()  # of each figure, the last
    return max((event.step for name in held.Tags()[SCALARS] for event in held.Scalars(name)), default=0)
