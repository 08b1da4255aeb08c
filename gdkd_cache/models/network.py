"""A network at work: uint8 views in, logits out, with what it needs to see images rightly."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gdkd_cache.device import autocast, choose_device, choose_precision, laid_out, memory_formats, usual_memory_format
from gdkd_cache.errors import ModelError, UsageError
from gdkd_cache.models.card import ModelCard
from gdkd_cache.models.normalization import NAMED, Normalization, normalize_pixels
from gdkd_cache.models.registry import MODELS
from gdkd_cache.models.trial import check_logits, first_taken, try_logits
from gdkd_cache.models.weights import load_card, load_model
from gdkd_cache.schema import short
from gdkd_cache.store.facts import BuildFacts, TeacherFacts


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network with what it needs to see images rightly: a teacher, or what is evaluated.

    Attributes:
        model: float images [batch, 3, height, width] -> logits [batch, class].
        mean, std: channel statistics of its inputs, for pixels in [0, 1].
        device, precision: where and how it runs: `float32`, `float16` or `bfloat16`.
        description: what a manifest says of it.
        memory_format: of the images that it is given, which moves the last bits of its logits: `channels_last` or
            `contiguous`; None is the device's usual one, until `tried` finds a faster.
    """

    model: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device
    precision: str
    description: TeacherFacts
    memory_format: str | None = None

    def logits(self, pixels: Tensor) -> Tensor:
        """Float32 logits [batch, class] of uint8 views [batch, 3, height, width], on the network's device."""
        with torch.inference_mode(), autocast(self.precision, self.device):
            images = normalize_pixels(pixels.to(self.device, non_blocking=True), self.mean, self.std)
            logits = self.model(laid_out(images, self.memory_format or usual_memory_format(self.device)))
        check_logits(f"teacher {self.description.name}", logits)
        # A copy made outside inference mode may take part in a loss.
        return logits.float().clone()

    def as_in(self, built: BuildFacts) -> "Network":
        """The same network, run as some views were built: in their precision, where it is stated, and memory format.

        Raises:
            UsageError: an unknown precision; an unknown memory format is refused when it is run.
        """
        precision = self.precision if built.precision is None else choose_precision(built.precision, self.device)
        memory_format = built.memory_format or usual_memory_format(self.device)
        return replace(self, precision=precision, memory_format=memory_format)

    def tried(self, num_classes: int, size: tuple[int, int]) -> "Network":
        """The same network, run once on blank images: where no memory format is set, in the fastest that it takes.

        Args:
            num_classes: of the data.
            size: height and width of the images.

        Raises:
            ModelError: it cannot take images of that size, or does not give one logit a class.
        """
        blank = torch.zeros(2, 3, *size, dtype=torch.uint8)

        def attempt(memory_format: str) -> None:
            logits = replace(self, memory_format=memory_format).logits
            try_logits(f"teacher {self.description.name}", lambda: logits(blank), (2, num_classes), size)

        formats = (self.memory_format,) if self.memory_format else memory_formats(self.device, size)
        return replace(self, memory_format=first_taken(formats, attempt))


def open_network(
    name: str | None,
    weights: Path,
    num_classes: int,
    *,
    normalization: Normalization | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Network:
    """Load a network with its weights.

    Its inputs are normalised as the caller says, else as the card of the weights says, else as the model itself
    does (a module may have `mean` and `std`, three numbers each); what nobody says is never guessed.

    Args:
        name: as for `build_model`; None takes the card's, which loads no code that nobody has named.
        weights: `.safetensors`, or a torch file of plain tensors.
        num_classes: of the data; the network must know as many.
        normalization: of its inputs.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `auto`, `float32`, `float16` or `bfloat16`.

    Raises:
        ModelError: missing or foreign weights, another number of classes, or inputs that nobody says how to normalise.
        UsageError: an unknown model, device or precision.
    """
    where = choose_device(device)
    card = load_card(weights)
    if name is None:
        name = _named(card, weights)
    if card is not None and card.name != name:
        raise ModelError(f"weights {weights} are of {card.name}, not of {name}, as their card says")
    if card is not None and card.num_classes != num_classes:
        raise ModelError(
            f"weights {weights} know {card.num_classes} classes; the data has {num_classes}: "
            "the teacher must know the same classes"
        )
    model, checksum = load_model(name, num_classes, weights)
    if normalization is None:
        normalization = _stated(model) if card is None else Normalization(card.mean, card.std)
    if normalization is None:
        raise ModelError(
            f"weights {weights} have no card, and {name} does not say how its inputs are normalised: type --normalize "
            f"{'|'.join(NAMED)}, or --mean R G B --std R G B"
        )
    model = model.to(where)
    if where.type == "cuda":
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (torch's stub lacks it)
    description = TeacherFacts(
        name=name,
        weights=checksum,
        mean=normalization.mean,
        std=normalization.std,
        accuracy=card.accuracy if card else None,
    )
    return Network(
        model=model,
        mean=normalization.mean,
        std=normalization.std,
        device=where,
        precision=choose_precision(precision, where),
        description=description,
    )


def open_teacher(
    stated: TeacherFacts,
    name: str,
    weights: Path,
    num_classes: int,
    *,
    normalization: Normalization | None = None,
    device: str = "auto",
) -> Network:
    """Load the teacher of a cache, whose inputs are normalised as the manifest states where nobody says otherwise.

    Args:
        stated: what the manifest says of it.
        name, weights, num_classes, normalization, device: as for `open_network`.

    Raises:
        ModelError, UsageError: as `open_network`.
    """
    if normalization is None and load_card(weights) is None and stated.mean is not None and stated.std is not None:
        normalization = Normalization(stated.mean, stated.std)
    return open_network(name, weights, num_classes, normalization=normalization, device=device)


def _named(card: ModelCard | None, weights: Path) -> str:
    """The name of the network that a card names: one of ours, or one that the user has named in this process."""
    if card is None:
        raise ModelError(f"weights {weights} do not exist, or have no card: name the model with --model")
    try:
        name, _ = MODELS.split(card.name)
    except UsageError as error:
        raise ModelError(f"weights {weights}: {error}") from None
    if not MODELS.is_known(name):
        raise ModelError(
            f"weights {weights} are of model {short(name)}, code that no file may load: if you have it and trust it, "
            f"name it yourself, with --model {short(card.name)}"
        )
    return card.name


def _stated(model: nn.Module) -> Normalization | None:
    """What a module says of its inputs itself."""
    mean, std = getattr(model, "mean", None), getattr(model, "std", None)
    if not (isinstance(mean, list | tuple) and isinstance(std, list | tuple)):
        return None
    try:
        return Normalization(tuple(map(float, mean)), tuple(map(float, std)))
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"{type(model).__name__}.mean and .std are no statistics of inputs: {error}") from None
