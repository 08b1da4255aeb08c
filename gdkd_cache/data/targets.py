"""What the targets of a batch are: class ids, or masks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

Kind = TypeVar("Kind", bound="Targets")


@dataclass(frozen=True)
class Targets(ABC):
    """What is asked of the n images of a batch: tensors [n, ...], or None."""

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self: Kind, rows: slice | Tensor) -> Kind:
        return self._each(lambda value: value[rows])

    @staticmethod
    def joined(parts: Sequence["Targets"]) -> "Targets":
        """Those of several batches, all of one kind: of mixed images or none, of masks of one size."""
        columns = vars(parts[0]).items()
        return replace(
            parts[0],
            **{name: torch.cat([vars(part)[name] for part in parts]) for name, value in columns if value is not None},
        )

    def pin_memory(self: Kind) -> Kind:
        """The same, page-locked."""
        return self._each(Tensor.pin_memory)

    def _each(self: Kind, change: Callable[[Tensor], Tensor]) -> Kind:
        return replace(self, **{name: change(value) for name, value in vars(self).items() if value is not None})

    @abstractmethod
    def for_cross_entropy(self, num_classes: int) -> Tensor:
        """What cross-entropy is taken with, of that many classes: [n, ...]."""


@dataclass(frozen=True)
class ClassTargets(Targets):
    """A class id for each image, or two where images are mixed.

    Attributes:
        labels: int64 [n].
        partner_labels, shares: int64 [n] and float32 [n], where images are mixed: an image is `shares` of one of class
            `labels` and the rest of one of class `partner_labels`.
    """

    partner_labels: Tensor | None = None
    shares: Tensor | None = None

    def mixed(self, partners: "ClassTargets", shares: Tensor) -> "ClassTargets":
        """Those of images of which only a share is left, float32 [n], and the rest is their partners'."""
        return ClassTargets(self.labels, partners.labels, shares)

    def for_cross_entropy(self, num_classes: int) -> Tensor:
        """What cross-entropy is taken with: int64 [n], or float32 [n, class] where images are mixed."""
        if self.partner_labels is None or self.shares is None:
            return self.labels
        targets = torch.zeros(len(self), num_classes)
        targets.scatter_(1, self.labels[:, None], self.shares[:, None])
        return targets.scatter_add_(1, self.partner_labels[:, None], 1 - self.shares[:, None])


@dataclass(frozen=True)
class MaskTargets(Targets):
    """A class id for each pixel.

    Attributes:
        labels: zeros, int64 [n]: such an image has no class of its own.
        masks: int16 [n, height, width], class ids or `IGNORE`.
    """

    masks: Tensor

    def for_cross_entropy(self, num_classes: int) -> Tensor:
        """What cross-entropy is taken with: int64 [n, height, width], where `IGNORE` is what torch ignores."""
        return self.masks.long()
