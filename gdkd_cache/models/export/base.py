"""What is exported, and what a format does with it."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gdkd_cache.models.card import ModelCard
from gdkd_cache.models.cells import MAIN
from gdkd_cache.models.export.options import PIXELS
from gdkd_cache.models.network import Network

METADATA_KEY = "gdkd_cache"
"""Under which a file holds what is said of its network, as JSON: `Exported.facts`."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A network that is to become a file.

    Attributes:
        network: on the CPU, in float32.
        card: what is said of it.
        input: what the program takes: `normalized` images, or `pixels` in [0, 1].
        class_names: of its outputs, in their order; empty where nobody names them.
    """

    network: Network
    card: ModelCard
    input: str
    class_names: tuple[str, ...]

    @property
    def program(self) -> nn.Module:
        """float32 images [batch, 3, height, width], as `input` says -> float32 logits [batch, class].

        Of a dense network its main output, [batch, class, height, width] at its own stride.
        """
        return _Program(self.network.model, self.card, takes_pixels=self.input == PIXELS).eval()

    @property
    def example(self) -> Tensor:
        """Images to trace a program with: two, as one is a number that tracers take for a constant."""
        return torch.zeros(2, 3, *self.card.size)

    @property
    def metadata(self) -> str:
        """What a file says of itself: JSON of the card, of `input` and of the names of the classes."""
        facts: dict[str, Any] = {"card": self.card.to_json(), "input": self.input}
        return json.dumps(facts | {"classes": list(self.class_names)})


class ExportFormat(ABC):
    """A kind of file that a network becomes.

    Attributes:
        suffix: how its files' names end.
        is_program: whether it holds the network itself, not its weights alone: what it takes can then be chosen, and
            `--classes` and `--output` have their effect in it.
        libraries: modules that must be installed.
        extra: of this package, which installs them.
        most_bytes: of weights; None where a file has no end.
    """

    suffix: ClassVar[str]
    is_program: ClassVar[bool] = True
    libraries: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None
    most_bytes: ClassVar[int | None] = None

    @abstractmethod
    def encode(self, exported: Exported) -> bytes:
        """The file.

        Raises:
            Exception: whatever the library says of a network that it cannot take.
        """

    @abstractmethod
    def run(self, data: bytes, exported: Exported, images: Tensor) -> Tensor:
        """Open the file as its users will, and run it.

        Args:
            data: what `encode` gave.
            exported: what of.
            images: float32 [batch, 3, height, width], as `input` says.

        Returns:
            float32 logits, as `Exported.program` gives them.
        """

    @abstractmethod
    def hint(self, out: Path) -> str:
        """How to open it, in a line."""


def main_output(outputs: Any) -> Tensor:
    """What a network gave, of a dense one with several outputs the main one."""
    return outputs[MAIN] if isinstance(outputs, Mapping) else outputs


class _Program(nn.Module):
    """A network, and perhaps the normalisation before it."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, card: ModelCard, *, takes_pixels: bool) -> None:
        super().__init__()
        self.model, self._takes_pixels = model, takes_pixels
        if takes_pixels:
            self.register_buffer("mean", torch.tensor(card.mean)[:, None, None])
            self.register_buffer("std", torch.tensor(card.std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        if self._takes_pixels:
            images = (images - self.mean) / self.std
        return main_output(self.model(images))
