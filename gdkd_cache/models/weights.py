"""Weights on disk: a `.safetensors` file whose header holds the model's card, or a torch file of plain tensors."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import TypeVar

import safetensors.torch
from torch import Tensor, nn

from gdkd_cache.errors import GdkdCacheError, ModelError, first_line, is_out_of_memory
from gdkd_cache.files import open_plain, read_bounded
from gdkd_cache.models.build import build_model, outline_model
from gdkd_cache.models.card import CARD_LIMIT, ModelCard, parse_card
from gdkd_cache.models.described import Described, WeightsFile
from gdkd_cache.models.safetensors_file import CARD_KEY, SafetensorsFile
from gdkd_cache.models.torch_file import TorchFile
from gdkd_cache.models.zoo.staged import Staged
from gdkd_cache.schema import short

_SPARE = 2**26
_COUNT = ".num_batches_tracked"  # missing in what torch wrote before 0.4.1, public weights among it; torch takes 0 then
_Stored = TypeVar("_Stored", Described, Tensor)


def save_weights(model: nn.Module, card: ModelCard, path: Path) -> None:
    """Write weights and their card as one `.safetensors` file, whole or not at all.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    replace_file(path, safetensors.torch.save(weights, {CARD_KEY: json.dumps(card.to_json())}))


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that it is the old one or the new one, never a part.

    Raises:
        OSError: it cannot be written; the old one stays.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)  # a full disk does not say where
        partial.unlink(missing_ok=True)
        raise


def load_card(path: Path) -> ModelCard | None:
    """The card of a weights file: in its header, or in a `.json` beside it; None where there is none.

    Raises:
        ModelError: it is no card, or the file that should hold it cannot be read.
        OSError: it cannot be opened.
    """
    if path.suffix == ".safetensors" and path.exists():
        with open_plain(path, "weights", ModelError) as file, _reading(path):
            card = SafetensorsFile(file).card
        if card is not None:
            return parse_card(card, f"the card in {path}")
    beside = path.with_suffix(".json") if path.name else path
    if beside == path or not beside.exists():
        return None
    return parse_card(read_bounded(beside, CARD_LIMIT, "model card", ModelError), str(beside))


def load_model(name: str, num_classes: int, path: Path) -> tuple[nn.Module, str]:
    """Build a network and load its weights, from safetensors or from a torch file of plain tensors.

    A network of ours takes memory only once the file is known to hold its weights; a user's own is built first.

    Args:
        name: as for `build_model`.
        num_classes: size of the output.
        path: `.safetensors`, or anything else for a file of `torch.save`.

    Returns:
        The module in evaluation mode, and `sha256:...` of the weights file.

    Raises:
        ModelError: no such file, not a weights file, or weights of another network.
        UsageError: an unknown name.
        OSError: the file cannot be opened.
    """
    if not path.exists():
        raise ModelError(f"weights {path} do not exist; train some with: gdkd-cache train --loss ce")
    with open_plain(path, "weights", ModelError) as file:
        with _reading(path):
            stored: WeightsFile = SafetensorsFile(file) if path.suffix == ".safetensors" else TorchFile(file)
        outline = outline_model(name, num_classes)
        described = _named_today(outline, stored.described)
        _check_fit(f"{name} with {num_classes} classes", outline, described, path)
        _check_size(name, outline, file, path)
        model = build_model(name, num_classes) if any(one.is_meta for one in outline.parameters()) else outline
        with _reading(path):
            model.load_state_dict(_named_today(model, stored.read()))
            file.seek(0)
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
    return model.eval(), f"sha256:{checksum}"


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever a file does to its reader, and to the libraries below, said in a line."""
    try:
        yield
    except GdkdCacheError:
        raise
    except Exception as error:  # of damaged files, anything: IndexError, KeyError, struct.error, ...
        if is_out_of_memory(error):
            raise
        raise ModelError(f"weights {path} cannot be read: {first_line(error)}") from None


def _named_today(model: nn.Module, stored: Mapping[str, _Stored]) -> Mapping[str, _Stored]:
    """Tensors that an earlier version named otherwise, by the names that the network has for them."""
    today = model.older_names if isinstance(model, Staged) else {}
    return {today[name]: stored[name] for name in stored} if stored.keys() == today.keys() else stored


def _check_fit(what: str, model: nn.Module, stored: Mapping[str, Described], path: Path) -> None:
    """Refuse weights of another network; it names the first tensor that differs."""
    values = model.state_dict().items()
    expected = {name: Described.of(value.shape, value.dtype) for name, value in values if isinstance(value, Tensor)}
    for name in sorted(expected.keys() | stored.keys()):
        there, here = stored.get(name), expected.get(name)
        if there == here or (there is None and name.endswith(_COUNT)):
            continue
        if there is None or here is None:
            fault = "is missing" if there is None else "is not part of it"
        elif there.shape != here.shape:
            fault = f"is {list(there.shape)}, expected {list(here.shape)}"
        else:
            fault = f"has {there.kind} numbers, expected {here.kind} ones"
        raise ModelError(f"weights {path} do not fit {what}: {short(name)} {fault}")


def _check_size(name: str, model: nn.Module, file: BufferedReader, path: Path) -> None:
    """Refuse a file that holds far more than a network's weights and what a training keeps beside them."""
    wanted = sum(value.nbytes for value in model.state_dict().values() if isinstance(value, Tensor))
    size = os.fstat(file.fileno()).st_size
    if size > 8 * wanted + _SPARE:
        raise ModelError(
            f"weights {path} have {size} bytes, more than eight times what {name} needs; save its state_dict alone"
        )
