"""A teacher at work: uint8 views in, logits out. Only building and live distillation import this."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gdkd_cache.data import Source, name_of, normalization_of, normalize_pixels
from gdkd_cache.errors import ModelError
from gdkd_cache.models import load_card, load_model
from gdkd_cache.pipeline.device import autocast, choose_device, choose_precision


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A network with what it needs to see images rightly.

    Attributes:
        model: float images [batch, 3, height, width] -> logits [batch, class].
        mean, std: channel statistics of its inputs, for pixels in [0, 1].
        device, precision: where and how it runs: `float32`, `float16` or `bfloat16`.
        description: what a manifest says of it.
    """

    model: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device
    precision: str
    description: dict[str, Any]

    def logits(self, pixels: Tensor) -> Tensor:
        """Float32 logits [batch, class] of uint8 views [batch, 3, height, width], on the teacher's device."""
        with torch.inference_mode(), autocast(self.precision, self.device):
            images = normalize_pixels(pixels.to(self.device, non_blocking=True), self.mean, self.std)
            if self.device.type == "cuda":
                images = images.contiguous(memory_format=torch.channels_last)
            logits = self.model(images)
        # A copy made outside inference mode may take part in a loss.
        return logits.float().clone()

    def check_classes(self, source: Source, size: tuple[int, int]) -> None:
        """Run the network once on blank images.

        Raises:
            ModelError: it cannot take images of that size, or does not give one logit a class of the source.
        """
        try:
            shape = list(self.logits(torch.zeros(2, 3, *size, dtype=torch.uint8)).shape)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ModelError(
                f"teacher {self.description['name']} cannot take {size[0]}x{size[1]} images: {reason}"
            ) from None
        if shape != [2, len(source.classes)]:
            raise ModelError(
                f"teacher {self.description['name']} gives logits {shape} for 2 images; source {name_of(source)} has "
                f"{len(source.classes)} classes: the teacher must know the same classes"
            )


def open_teacher(
    name: str | None, weights: Path, source: Source, *, device: str = "auto", precision: str = "auto"
) -> Teacher:
    """Load a teacher for a source, with the normalisation of its card (or the source's, where it has no card).

    Args:
        name: as for `build_model`; None takes the card's.
        weights: `.safetensors`, or a torch file of plain tensors.
        source: the data; its class count must be the teacher's.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `auto`, `float32`, `float16` or `bfloat16`.

    Raises:
        ModelError: missing or foreign weights, or another number of classes than the source has.
        UsageError: an unknown model, device or precision.
    """
    where = choose_device(device)
    card = load_card(weights)
    if name is None:
        if card is None:
            missing = weights.with_suffix(".json").name
            raise ModelError(f"weights {weights} do not exist, or have no {missing} beside them: name the model")
        name = card.name
    if card is not None and card.name != name:
        raise ModelError(f"weights {weights} are of {card.name}, not of {name}: {weights.with_suffix('.json')} says so")
    if card is not None and card.num_classes != len(source.classes):
        raise ModelError(
            f"weights {weights} know {card.num_classes} classes; source {name_of(source)} has {len(source.classes)}: "
            "the teacher must know the same classes"
        )
    model, checksum = load_model(name, len(source.classes), weights)
    model = model.to(where)
    if where.type == "cuda":
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (torch's stub lacks it)
    mean, std = (card.mean, card.std) if card else normalization_of(source)
    description = {
        "name": name,
        "weights": checksum,
        "mean": list(mean),
        "std": list(std),
        "accuracy": card.accuracy if card else None,
    }
    return Teacher(
        model=model,
        mean=mean,
        std=std,
        device=where,
        precision=choose_precision(precision, where),
        description=description,
    )
