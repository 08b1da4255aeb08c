"""What the targets of a batch are: for now class ids."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassTargets:
    """A class id for each image, or two where images are mixed.

    Attributes:
        labels: int64 [n].
        partner_labels, shares: int64 [n] and float32 [n], where images are mixed: an image is `shares` of one of class
            `labels` and the rest of one of class `partner_labels`.
    """

    labels: Tensor
    partner_labels: Tensor | None = None
    shares: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | Tensor) -> "ClassTargets":
        return self._each(lambda value: value[rows])

    @staticmethod
    def joined(parts: Sequence["ClassTargets"]) -> "ClassTargets":
        """Those of several batches, all of mixed images or none."""
        columns = vars(parts[0]).items()
        return ClassTargets(
            **{name: torch.cat([vars(part)[name] for part in parts]) for name, value in columns if value is not None}
        )

    def mixed(self, partners: "ClassTargets", shares: Tensor) -> "ClassTargets":
        """Those of images of which only a share is left, float32 [n], and the rest is their partners'."""
        return ClassTargets(self.labels, partners.labels, shares)

    def pin_memory(self) -> "ClassTargets":
        """The same, page-locked."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "ClassTargets":
        return replace(self, **{name: change(value) for name, value in vars(self).items() if value is not None})

    def for_cross_entropy(self, num_classes: int) -> Tensor:
        """What cross-entropy is taken with: int64 [n], or float32 [n, class] where images are mixed."""
        if self.partner_labels is None or self.shares is None:
            return self.labels
        targets = torch.zeros(len(self), num_classes)
        targets.scatter_(1, self.labels[:, None], self.shares[:, None])
        return targets.scatter_add_(1, self.partner_labels[:, None], 1 - self.shares[:, None])
