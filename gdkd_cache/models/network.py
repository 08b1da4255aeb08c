"""A network at work: uint8 views in, logits out, with what it needs to see images rightly."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gdkd_cache.device import autocast, choose_device, choose_precision, laid_out, memory_formats, usual_memory_format
from gdkd_cache.errors import ModelError, UsageError
from gdkd_cache.models.build import build_model
from gdkd_cache.models.card import ModelCard
from gdkd_cache.models.classes import ClassLogits, check_order
from gdkd_cache.models.library import Stated
from gdkd_cache.models.normalization import NAMED, Normalization, normalize_pixels
from gdkd_cache.models.outputs import give_logits
from gdkd_cache.models.registry import MODELS
from gdkd_cache.models.statements import first_said, library_of, locate, located, public_name, said_by
from gdkd_cache.models.trial import check_logits, first_taken, running, try_logits
from gdkd_cache.models.weights import load_card, load_model, own_checksum
from gdkd_cache.schema import short
from gdkd_cache.store.facts import BuildFacts, TeacherFacts

_LOG = logging.getLogger(__name__)
_OPTION, _MODULE = "an option", "the model itself"


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
        size: height and width of the images that it was made for; None where nobody says.
        interpolation: how these were resized, likewise.
        eval_recipe: what makes its inputs without augmentation, likewise.
        classes: the names of its outputs, likewise.
        origins: who said `normalization`, `size`, ..., by these names.
    """

    model: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device
    precision: str
    description: TeacherFacts
    memory_format: str | None = None
    size: tuple[int, int] | None = None
    interpolation: str | None = None
    eval_recipe: str | None = None
    classes: tuple[str, ...] | None = None
    origins: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """How it sees images, and who says so, in a line."""
        numbers = (" ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        said = {
            "normalization": "mean {}, std {}".format(*numbers),
            "size": self.size and f"made for {self.size[0]}x{self.size[1]}",
            "interpolation": self.interpolation,
            "classes": self.classes and f"{len(self.classes)} named classes",
        }
        parts = [f"{text} ({self.origins.get(name, 'given')})" for name, text in said.items() if text]
        return f"{self.description.name}: {', '.join(parts)}"

    def logits(self, pixels: Tensor) -> Tensor:
        """Float32 logits [batch, class] of uint8 views [batch, 3, height, width], on the network's device."""
        with torch.inference_mode(), autocast(self.precision, self.device):
            images = normalize_pixels(pixels.to(self.device, non_blocking=True), self.mean, self.std)
            images = laid_out(images, self.memory_format or usual_memory_format(self.device))
            with running(f"teacher {self.description.name}"):
                logits = self.model(images)
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

        Images of another size than it was made for are no error, as many networks take them; a warning says so.

        Args:
            num_classes: of the data.
            size: height and width of the images.

        Raises:
            ModelError: it cannot take images of that size, or does not give one logit a class.
        """
        blank = torch.zeros(2, 3, *size, dtype=torch.uint8, device=self.device)
        if self.size is not None and self.size != size:
            _LOG.warning(
                "%s was made for images of %dx%d, as %s says, and sees %dx%d here: a recipe makes another size",
                *(self.description.name, *self.size, self.origins.get("size", "its maker"), *size),
            )

        def attempt(memory_format: str) -> None:
            with torch.inference_mode(), autocast(self.precision, self.device):
                images = laid_out(normalize_pixels(blank, self.mean, self.std), memory_format)
                try_logits(f"teacher {self.description.name}", lambda: self.model(images), (2, num_classes), size)

        formats = (self.memory_format,) if self.memory_format else memory_formats(self.device, size)
        return replace(self, memory_format=first_taken(formats, attempt))


def open_network(
    name: str | None,
    weights: Path | str | None,
    num_classes: int,
    *,
    normalization: Normalization | None = None,
    weights_key: str | None = None,
    output: str | None = None,
    classes: Sequence[int] | None = None,
    class_names: Sequence[Sequence[str]] = (),
    device: str = "auto",
    precision: str = "auto",
) -> Network:
    """Load a network with its weights.

    Its inputs are normalised as the caller says, else as the card of the weights says, else as the library does that
    published the weights, else as the model itself does (a module may have `mean` and `std`, three numbers each); what
    nobody says is never guessed.

    Args:
        name: as for `build_model`; None takes the card's, which loads no code that nobody has named.
        weights: a file as for `load_model`, or what the model's library calls its weights (`IMAGENET1K_V2`, `DEFAULT`,
            `pretrained`); None for a model that brings its own: an `hf:FOLDER`, or a user's callable.
        num_classes: of the data; the network must know as many, or `classes` says which of them its outputs are.
        normalization: of its inputs.
        weights_key: what the weights lie under, where a file holds several.
        output: which of several outputs are the logits: a name or a number.
        classes: for each of its logits the class of the data that it is, -1 for none, as `output_classes` finds them;
            None where they are the classes in their order.
        class_names: what the classes of the data are called, as for `output_classes`; where the model's library says
            what its outputs are, the two are compared.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `auto`, `float32`, `float16` or `bfloat16`.

    Raises:
        ModelError: missing or foreign weights, another number of classes, or inputs that nobody says how to normalise.
        UsageError: an unknown model, device or precision, or no weights where they are needed.
    """
    where = choose_device(device)
    library, argument = (None, "") if name is None else library_of(name)
    path = located(library, argument, weights)
    card = None if path is None else load_card(path)
    if name is None:
        if path is None:
            raise UsageError("name the weights, with --weights, or the model, with --model")
        name = _named(card, path)
    if card is not None and card.name != public_name(name):
        raise ModelError(f"weights {weights} are of {card.name}, not of {name}, as their card says")
    stated = [
        normalization and Stated(by=_OPTION, normalization=normalization),
        card and said_by(card),
        library and library.stated(argument, None if weights is None else str(weights)),
    ]
    published = next((one for one in stated[2:] if one and one.classes), None)
    if classes is not None and [*classes] == [*range(num_classes)]:
        classes = None
    num_outputs = num_classes if classes is None else len(classes)
    known = card.num_classes if card else len(published.classes or ()) if published else num_outputs
    if known != num_outputs:
        what = name if weights is None else f"weights {weights}"
        if classes is not None:
            raise ModelError(f"{what} know {known} classes; --classes says what {num_outputs} outputs are")
        raise ModelError(
            f"{what} know {known} classes; the data has {num_classes}: the teacher must know the same classes, or "
            "--classes must say which its outputs are"
        )
    if classes is None and published and published.classes and class_names:
        check_order(name, published.classes, class_names)
    if path is None:
        model, checksum = _brought(name, num_outputs, output)
    else:
        model, checksum = load_model(name, num_outputs, path, key=weights_key, output=output)
    seen, origins = first_said([*stated, _stated(model)])
    if (found := seen.get("normalization")) is None:
        what = name if weights is None else f"weights {weights} have no card, and {name}"
        raise ModelError(
            f"{what} does not say how its inputs are normalised: type --normalize {'|'.join(NAMED)}, or --mean R G B "
            "--std R G B"
        )
    if classes is not None:
        model = ClassLogits(model, classes)
    model = model.to(where)
    if where.type == "cuda":
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (torch's stub lacks it)
    # What a card or an option says is not repeated: manifests of such teachers stay as they were.
    by_library = library is not None and card is None
    description = TeacherFacts(
        name=public_name(name),
        weights=checksum,
        mean=found.mean,
        std=found.std,
        accuracy=card.accuracy if card else None,
        size=seen.get("size") if by_library else None,
        interpolation=seen.get("interpolation") if by_library else None,
        stated_by=stated[2].by if by_library and stated[2] and origins["normalization"] == stated[2].by else None,
        output=output,
        classes=None if classes is None else tuple(classes),
    )
    network = Network(
        model=model,
        mean=found.mean,
        std=found.std,
        device=where,
        precision=choose_precision(precision, where),
        description=description,
        origins=origins,
        **{name: value for name, value in seen.items() if name != "normalization"},
    )
    _LOG.info("%s", network)
    return network


def open_teacher(
    stated: TeacherFacts,
    name: str,
    weights: Path | str | None,
    num_classes: int,
    *,
    normalization: Normalization | None = None,
    weights_key: str | None = None,
    output: str | None = None,
    classes: Sequence[int] | None = None,
    device: str = "auto",
) -> Network:
    """Load the teacher of a cache, whose inputs are normalised as the manifest states where nobody says otherwise.

    Args:
        stated: what the manifest says of it.
        name, weights, num_classes, normalization, weights_key, output, classes, device: as for `open_network`; the
            manifest's output and classes where none are given.

    Raises:
        ModelError, UsageError: as `open_network`.
    """
    if normalization is None and stated.mean is not None and stated.std is not None:
        path = None if weights is None else locate(name, weights)
        if path is None or load_card(path) is None:
            normalization = Normalization(stated.mean, stated.std)
    return open_network(
        name,
        weights,
        num_classes,
        normalization=normalization,
        weights_key=weights_key,
        output=stated.output if output is None else output,
        classes=stated.classes if classes is None else classes,
        device=device,
    )


def published_classes(name: str, weights: Path | str | None) -> tuple[str, ...] | None:
    """The names that a model's library has for its outputs with some weights; None where it says nothing of them."""
    library, argument = library_of(name)
    said = library.stated(argument, None if weights is None else str(weights)) if library else None
    return said.classes if said else None


def _brought(name: str, num_classes: int, output: str | None) -> tuple[nn.Module, str]:
    """A network with the weights that it brings, and their checksum.

    Raises:
        UsageError: it brings none: ours are made with fresh ones.
    """
    library, argument = library_of(name)
    found = library.trained(argument) if library else None
    if found is not None:
        give_logits(found[0], f"model {name}", num_classes, output)
        return found
    if MODELS.split(name)[0] in MODELS:
        raise UsageError(f"model {name} has no weights of its own: name a file of them with --weights")
    model = build_model(name, num_classes, output).eval()
    return model, own_checksum(model)


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
    if (library := library_of(card.name)[0]) and library.names_places:
        raise ModelError(
            f"weights {weights} are of model {short(card.name)}, a place that no file may name: name it yourself, with "
            f"--model {name}:PLACE"
        )
    return card.name


def _stated(model: nn.Module) -> Stated | None:
    """What a module says of its inputs itself."""
    mean, std = getattr(model, "mean", None), getattr(model, "std", None)
    if not (isinstance(mean, list | tuple) and isinstance(std, list | tuple)):
        return None
    try:
        normalization = Normalization(tuple(map(float, mean)), tuple(map(float, std)))
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"{type(model).__name__}.mean and .std are no statistics of inputs: {error}") from None
    return Stated(by=_MODULE, normalization=normalization)
