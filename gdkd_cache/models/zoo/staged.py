"""What the CIFAR networks of the distillation literature share: stages, a mean over space, a linear classifier."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class Features(NamedTuple):
    """What a network makes of images on the way to its logits.

    Attributes:
        stages: maps [batch, channel, height, width], of the stem and of each stage.
        pooled: [batch, channel], of which the classifier makes logits.
    """

    stages: tuple[Tensor, ...]
    pooled: Tensor


class Staged(nn.Module, ABC):
    """A network whose features can be had: `stages` and `classify` say what it computes, and `pool` what is between.

    Its tensors have the names and shapes of the public networks of that name (RepDistiller, mdistiller), so that their
    checkpoints load, and it gives the same logits and features.
    """

    @property
    def older_names(self) -> dict[str, str]:
        """What an earlier version called its tensors, all of them, with their names of today; empty where none did."""
        return {}

    @abstractmethod
    def stages(self, images: Tensor) -> Iterator[Tensor]:
        """Maps [batch, channel, height, width] of the stem and of each stage, one after the other."""

    def pool(self, last: Tensor) -> Tensor:
        """The vectors [batch, channel] of the last stage's maps: their means."""
        return F.adaptive_avg_pool2d(last, 1).flatten(1)

    @abstractmethod
    def classify(self, pooled: Tensor) -> Tensor:
        """Logits [batch, class] of vectors [batch, channel]."""

    def features(self, images: Tensor) -> Features:
        """The maps of all stages and the pooled vector, of float images [batch, 3, height, width]."""
        stages = tuple(self.stages(images))
        return Features(stages, self.pool(stages[-1]))

    def forward(self, images: Tensor) -> Tensor:
        last = images
        for stage in self.stages(images):
            last = stage  # alone, so that no earlier map stays in memory
        return self.classify(self.pool(last))


def initialise(model: nn.Module, *, linear: float | None = None) -> None:
    """Draw weights: of convolutions as for ReLUs by the number of their outputs (ICCV 2015, He et al.), biases 0.

    Args:
        model: whose convolutions are drawn anew.
        linear: standard deviation of the weights of its linear layers, whose biases become 0; None leaves both.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and linear is not None:
            nn.init.normal_(module.weight, std=linear)
            nn.init.zeros_(module.bias)
