"""A network opened: found by its name, given its weights, and told how it sees images by whoever knows."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from gdkd_cache.device import choose_device, choose_precision
from gdkd_cache.errors import ModelError, UsageError
from gdkd_cache.models.build import build_model
from gdkd_cache.models.card import ModelCard
from gdkd_cache.models.classes import ClassLogits, check_order
from gdkd_cache.models.libraries import Stated
from gdkd_cache.models.network import Network
from gdkd_cache.models.normalization import NAMED, Normalization
from gdkd_cache.models.outputs import give_logits
from gdkd_cache.models.registry import MODELS, bare
from gdkd_cache.models.statements import first_said, library_of, locate, located, public_name, said_by
from gdkd_cache.models.weights import load_card, load_model, own_checksum
from gdkd_cache.schema import short
from gdkd_cache.store.facts import TeacherFacts

_LOG = logging.getLogger(__name__)
_OPTION, _MODULE = "an option", "the model itself"


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
    published = next((one.classes for one in stated[2:] if one and one.classes), None)
    if classes is not None and [*classes] == [*range(num_classes)]:
        classes = None
    num_outputs = num_classes if classes is None else len(classes)
    known = card.num_classes if card else len(published or range(num_outputs))
    if known != num_outputs:
        what = name if weights is None else f"weights {weights}"
        raise ModelError(f"{what} know {known} classes; {_wanted(num_classes, classes)}")
    if classes is None and published and class_names:
        check_order(name, published, class_names)
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


def _wanted(num_classes: int, classes: Sequence[int] | None) -> str:
    """How many classes a network must know, and what to do, in words."""
    if classes is not None:
        return f"--classes says what {len(classes)} outputs are"
    return f"the data has {num_classes}: the teacher must know the same, or --classes must say which its outputs are"


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


def known_classes(name: str | None, weights: Path | str | None) -> int:
    """How many classes a network knows, as the card of its weights, else its library, says.

    Args:
        name, weights: as for `open_network`.

    Raises:
        ModelError: nobody says it, or there are no such weights.
        UsageError: an unknown name.
    """
    library, argument = (None, "") if name is None else library_of(name)
    path = located(library, argument, weights)
    if path is not None and not path.exists():
        raise ModelError(f"weights {path} do not exist")
    card = None if path is None else load_card(path)
    if card is not None:
        return card.num_classes
    published = None if name is None else published_classes(name, weights)
    if published is None:
        raise ModelError(
            f"nobody says how many classes {name or weights} knows: type --num-classes N, or the data with --data"
        )
    return len(published)


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
        own = bare(card.name)
        name, _ = MODELS.split(own)
    except UsageError as error:
        raise ModelError(f"weights {weights}: {error}") from None
    if not MODELS.is_known(name):
        raise ModelError(
            f"weights {weights} are of model {short(name)}, code that no file may load: if you have it and trust it, "
            f"name it yourself, with --model {short(card.name)}"
        )
    if (library := library_of(own)[0]) and library.names_places:
        raise ModelError(
            f"weights {weights} are of model {short(card.name)}, a place that no file may name: name it yourself, with "
            f"--model {card.name.removesuffix(own)}{name}:PLACE"
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
