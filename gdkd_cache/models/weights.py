"""Weights on disk: a `.safetensors` file whose header holds the model's card, several of them, or a torch file."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from gdkd_cache.errors import ModelError, first_line, is_out_of_memory
from gdkd_cache.files import open_plain, read_bounded, replace_file
from gdkd_cache.models.build import build_model, outline_model
from gdkd_cache.models.card import CARD_LIMIT, ModelCard, parse_card
from gdkd_cache.models.checkpoint import find_weights
from gdkd_cache.models.described import Described, WeightsFile
from gdkd_cache.models.heads import kept_tensors
from gdkd_cache.models.safetensors_file import CARD_KEY, SafetensorsFile
from gdkd_cache.models.shards import INDEX_SUFFIX, WeightsShards
from gdkd_cache.models.torch_file import TorchFile
from gdkd_cache.models.zoo.staged import Staged

_SPARE = 2**27  # room for the teacher beside a student


def save_weights(model: nn.Module, card: ModelCard, path: Path) -> None:
    """Write weights and their card as one `.safetensors` file, whole or not at all.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    replace_file(path, encode_weights(kept_tensors(model), card))


def encode_weights(tensors: Mapping[str, Tensor], card: ModelCard | None = None) -> bytes:
    """The bytes of a `.safetensors` file of tensors by name, with their card."""
    metadata = None if card is None else {CARD_KEY: json.dumps(card.to_json())}
    return safetensors.torch.save(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata
    )


def load_card(path: Path) -> ModelCard | None:
    """The card of a weights file: in its header, or in a `.json` beside it; None where there is none.

    Raises:
        ModelError: it is no card, or the file that should hold it cannot be read.
        OSError: it cannot be opened.
    """
    if path.suffix == ".safetensors" and path.exists():
        with open_plain(path, "weights", ModelError) as file, reading(path):
            card = SafetensorsFile(file).card
        if card is not None:
            return parse_card(card, f"the card in {path}")
    beside = path.with_suffix(".json") if path.name else path
    if beside == path or not beside.exists():
        return None
    return parse_card(read_bounded(beside, CARD_LIMIT, "model card", ModelError), str(beside))


def load_model(
    name: str, num_classes: int, path: Path, *, key: str | None = None, output: str | None = None
) -> tuple[nn.Module, str]:
    """Build a network and load its weights, from safetensors or from a torch file of plain tensors.

    A network of ours takes memory only once the file is known to hold its weights; a user's own is built first.

    Args:
        name: as for `build_model`.
        num_classes: size of the output.
        path: `.safetensors`, the `.index.json` of several files, or anything else for a file of `torch.save`.
        key: what the weights lie under, where the file holds several; as for `find_weights`.
        output: which of several outputs are the logits; as for `pick_logits`.

    Returns:
        The module in evaluation mode, and `sha256:...` of the weights file.

    Raises:
        ModelError: no such file, not a weights file, weights of another network, or several that fit.
        UsageError: an unknown name.
        OSError: the file cannot be opened.
    """
    with open_weights(path) as stored:
        outline = outline_model(name, num_classes, output)
        names = _found(f"{name} with {num_classes} classes", outline, stored, path, key)
        _check_size(name, outline, stored, path)
        is_outline = any(one.is_meta for one in outline.parameters())
        model = build_model(name, num_classes, output) if is_outline else outline
        _load(model, stored, names, path)
        with reading(path):
            return model.eval(), stored.checksum()


def load_body(name: str, model: nn.Module, num_classes: int, path: Path, *, key: str | None = None) -> list[str]:
    """Load weights into a network, but those of a head for another number of classes.

    Args:
        name: of the network, for messages.
        model: gets them.
        num_classes: of the network.
        path, key: as for `load_model`.

    Returns:
        The names of what was left as it was.

    Raises:
        ModelError, OSError: as `load_model`.
    """
    with open_weights(path) as stored:
        names, expected = _found(name, model, stored, path, key, num_classes), _described(model)
        other = {own for own, there in names.items() if stored.described[there].shape != expected[own].shape}
        if len({stored.described[names[own]].shape[0] for own in other}) > 1:
            raise ModelError(f"weights {path} do not fit {name}: {', '.join(sorted(other))} have other shapes")
        _check_size(name, model, stored, path)
        _load(model, stored, {own: there for own, there in names.items() if own not in other}, path)
    return sorted(other)


def _found(
    what: str, model: nn.Module, stored: WeightsFile, path: Path, key: str | None, num_classes: int | None = None
) -> dict[str, str]:
    """The names in a file of a network's tensors, by the network's own; also of what was once named otherwise."""
    today = _named_today(model, stored.described)
    described = {own: stored.described[there] for own, there in today.items()}
    try:
        found = find_weights(what, _described(model), described, key, num_classes=num_classes)
    except ModelError as error:
        raise ModelError(f"weights {path} {error}") from None
    return {own: today[there] for own, there in found.items()}


def _load(model: nn.Module, stored: WeightsFile, names: Mapping[str, str], path: Path) -> None:
    """Give a network tensors of a file, whose names there are by its own; the others stay."""
    with reading(path):
        tensors = stored.read(names.values())
        model.load_state_dict(model.state_dict() | {own: tensors[there] for own, there in names.items()})


def own_checksum(model: nn.Module) -> str:
    """`sha256:...` of the weights that a network brings itself: of the file that `save_weights` would make of them."""
    return f"sha256:{hashlib.sha256(encode_weights(model.state_dict())).hexdigest()}"


@contextmanager
def open_weights(path: Path) -> Iterator[WeightsFile]:
    """An open file of weights, or several of which one is the index.

    Raises:
        ModelError: there is none, or what is there are no weights.
        OSError: it cannot be opened.
    """
    if not path.exists():
        raise ModelError(f"weights {path} do not exist; train some with: gdkd-cache train --loss ce")
    with ExitStack() as opened:
        with reading(path):
            if path.name.endswith(INDEX_SUFFIX):
                stored: WeightsFile = WeightsShards(path, opened, _open_file)
            else:
                stored = _open_file(opened.enter_context(open_plain(path, "weights", ModelError)), path)
        yield stored


def _open_file(file: BufferedReader, path: Path) -> WeightsFile:
    return SafetensorsFile(file) if path.suffix == ".safetensors" else TorchFile(file)


def _described(model: nn.Module) -> dict[str, Described]:
    values = model.state_dict().items()
    return {name: Described.of(value.shape, value.dtype) for name, value in values if isinstance(value, Tensor)}


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever a file does to its reader, and to the libraries below, said in a line."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # of damaged files, anything: IndexError, KeyError, struct.error, ...
        if is_out_of_memory(error):
            raise
        raise ModelError(f"weights {path} cannot be read: {first_line(error)}") from None


def _named_today(model: nn.Module, stored: Iterable[str]) -> dict[str, str]:
    """The names in a file by what the network calls them today: of tensors that an earlier version named otherwise."""
    names, today = set(stored), model.older_names if isinstance(model, Staged) else {}
    return {today[name]: name for name in names} if names == today.keys() else {name: name for name in names}


def _check_size(name: str, model: nn.Module, stored: WeightsFile, path: Path) -> None:
    """Refuse a file that holds far more than a network's weights and what a training keeps beside them."""
    wanted = sum(value.nbytes for value in model.state_dict().values() if isinstance(value, Tensor))
    if stored.num_bytes > 8 * wanted + _SPARE:
        raise ModelError(
            f"weights {path} have {stored.num_bytes} bytes, more than eight times what {name} needs; save its "
            "state_dict alone"
        )
