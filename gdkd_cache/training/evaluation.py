"""What an evaluation says, and what takes it: the two interfaces that classes and masks share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from gdkd_cache.data.targets import Targets


@dataclass(frozen=True, kw_only=True)
class Evaluation(ABC):
    """What a network's logits say of images and their targets.

    Attributes:
        loss: the mean negative log-likelihood of the targets (cross-entropy), in nats.
        num_rows: images seen.
    """

    loss: float
    num_rows: int

    score_name: ClassVar[str]
    """Which of its figures epochs and trainings are compared by: a name of `SCORES`."""
    class_titles: ClassVar[Mapping[str, str]]
    """What `by_class` gives, in words, by name: a number of what was seen, and then how right it was."""

    @property
    def score(self) -> float:
        """That figure, in [0, 1]."""
        return getattr(self, self.score_name)

    @abstractmethod
    def told(self) -> dict[str, float]:
        """Its figures by their names in the metrics of a training."""

    @abstractmethod
    def by_class(self) -> dict[str, tuple[float | int | None, ...]]:
        """Its figures of each class, in the order of class ids, by the names of `class_titles`."""


class Measure(ABC):
    """Takes an evaluation batch by batch, as sums that ranks can add.

    Attributes:
        num_sums: of them.
        most_images: of a batch at most; None for any number.
    """

    num_sums: int
    most_images: int | None = None

    @abstractmethod
    def sums(self, model: nn.Module, images: Tensor, targets: Targets) -> Tensor:
        """What a batch adds: float64 [num_sums], on the CPU.

        Args:
            model: in evaluation mode.
            images: its inputs, float [batch, 3, height, width].
            targets: of the batch, on any device.
        """

    @abstractmethod
    def evaluation(self, sums: Tensor, name: str) -> Evaluation:
        """What the sums of all batches say.

        Args:
            sums: float64 [num_sums].
            name: of the source, for messages.

        Raises:
            ModelError: the loss is not finite.
            SourceError: there is nothing that counts.
        """
