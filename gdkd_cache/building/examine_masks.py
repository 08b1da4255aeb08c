"""How right a teacher of masks is about the cells of calibration images, and whether it is no better than chance."""

import numpy as np
from torch import Tensor

from gdkd_cache.building.figures import P_VALUE, Tally, at_least, chance
from gdkd_cache.data.masks import IGNORE, cell_labels
from gdkd_cache.errors import ModelError
from gdkd_cache.store.facts import Examination


class CellTally:
    """Counts what a teacher's main output says of cells that have a label, batch by batch."""

    def __init__(self) -> None:
        self._tally, self._images = Tally(), 0
        self._predicted: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []

    def add(self, logits: Tensor, masks: Tensor) -> None:
        """Take some images: logits float [image, *grid, class], and their masks int16 [image, height, width]."""
        main = logits if logits.ndim == 4 else logits[:, 0]
        labels = cell_labels(masks.long(), (main.shape[1], main.shape[2])).to(main.device)
        counts = labels != IGNORE
        if counts.any():
            self._tally.add(main[counts], labels[counts])
            self._predicted.append(main[counts].argmax(-1).cpu().numpy())
            self._labels.append(labels[counts].cpu().numpy())
        self._images += int(counts.flatten(1).any(1).sum())

    def examination(self, *, accept: bool) -> Examination | None:
        """The figures, of cells; None where no cell has a label.

        Cells of one image are much alike, so that as many hits count as there are images.

        Raises:
            ModelError: chance explains how often it is right, and nobody accepts that.
        """
        if not self._labels:
            return None
        found = self._tally.examined()
        predicted, labels = np.concatenate(self._predicted), np.concatenate(self._labels)
        independent = chance(predicted, labels)
        hits = round(float(found.top1) * self._images)
        if not accept and at_least(hits, self._images, independent) >= P_VALUE and (labels != labels[0]).any():
            raise ModelError(
                f"the teacher is right on {found.top1:.1%} of the cells of {self._images} augmented views, and by "
                f"chance it would be on {independent:.1%}: are its weights those of this data's classes, in this "
                "order? Build all the same with --accept-teacher"
            )
        return Examination(views=found)
