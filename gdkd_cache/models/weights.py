"""Weights on disk: a `.safetensors` file, and beside it a `.json` of what is needed to rebuild the network."""

import dataclasses
import hashlib
import json
import math
import os
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from gdkd_cache.errors import ModelError
from gdkd_cache.models.build import build_model


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What is needed to rebuild and rightly feed a trained network.

    Attributes:
        name: as for `build_model`.
        num_classes: size of its output.
        size: height and width of the images that it was trained on.
        mean, std: channel statistics that its inputs were normalised with, for pixels in [0, 1].
        accuracy: top-1 on the split it was evaluated on, in [0, 1]; None when it was not.
        eval_recipe: what makes its inputs of images to be evaluated, without augmentation.
    """

    name: str
    num_classes: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    accuracy: float | None = None
    eval_recipe: str = "none"

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self)))


def save_weights(model: nn.Module, card: ModelCard, path: Path) -> None:
    """Write `path` (.safetensors) and its card (.json beside it), each whole or not at all, the weights last."""
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    replace_file(path.with_suffix(".json"), json.dumps(card.to_json(), indent=1).encode() + b"\n")
    replace_file(path, safetensors.torch.save(weights))


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
    """The card beside a weights file; None when there is none.

    Raises:
        ModelError: it cannot be read.
    """
    card = path.with_suffix(".json")
    if not card.is_file():
        return None
    try:
        fields = json.loads(card.read_bytes())
        loaded = ModelCard(**fields | {name: tuple(fields[name]) for name in ("size", "mean", "std")})
        if not (len(loaded.mean) == len(loaded.std) == 3 and all(map(math.isfinite, loaded.mean)) and all(loaded.std)):
            raise ValueError("mean and std need three finite values each")
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{card} is no model card: {error}; it needs name, num_classes, size, mean, std") from None
    return loaded


def load_model(name: str, num_classes: int, path: Path) -> tuple[nn.Module, str]:
    """Build a network and load its weights, from safetensors or from a torch file of plain tensors.

    Args:
        name: as for `build_model`.
        num_classes: size of the output.
        path: `.safetensors`, or anything else to be read with `weights_only=True`.

    Returns:
        The module in evaluation mode, and `sha256:...` of the weights file.

    Raises:
        ModelError: no such file, not a weights file, or weights of another network.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"weights {path} do not exist; train some with: gdkd-cache train --loss ce") from None
    model = build_model(name, num_classes)
    try:
        weights = safetensors.torch.load(data) if path.suffix == ".safetensors" else _torch_weights(path)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ModelError(f"weights {path} cannot be read: {str(error).splitlines()[0]}") from None
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        raise ModelError(
            f"weights {path} do not fit {name} with {num_classes} classes: {_misfit(model, weights)}"
        ) from None
    return model.eval(), f"sha256:{hashlib.sha256(data).hexdigest()}"


def _torch_weights(path: Path) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of pickles that it then refuses
        stored = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(stored, dict):
        stored = stored.get("state_dict", stored.get("model", stored))
    if not isinstance(stored, dict) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise ValueError("it holds no state dict of tensors")
    return stored


def _misfit(model: nn.Module, weights: dict[str, Tensor]) -> str:
    """The first thing that differs between a module and a state dict."""
    expected = model.state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} is not part of it"
        if weights[name].shape != expected[name].shape:
            return f"{name} is {list(weights[name].shape)}, expected {list(expected[name].shape)}"
    return "its tensors differ"
