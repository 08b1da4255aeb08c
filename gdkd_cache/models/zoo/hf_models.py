"""Folders of image classifiers that transformers saved, where transformers is installed; no code of theirs runs."""

import itertools
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from gdkd_cache.errors import ModelError, UsageError, first_line
from gdkd_cache.files import read_bounded
from gdkd_cache.models.libraries import Library, Stated
from gdkd_cache.models.normalization import Normalization
from gdkd_cache.models.weights import open_weights
from gdkd_cache.schema import short

_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_LIMIT = 2**22
_LARGEST = 2**17  # of a number in a config: no network has as many layers, channels or classes
_SPARE = 2**26
_MOST_PARAMETERS = 20_000
_RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers
_OWN_WAYS = ("include_top", "rescale_offset")  # of a few processors, which are no mean and deviation


class _Folders(Library):
    """Image classifiers in folders: config.json, model.safetensors (or its shards), preprocessor_config.json."""

    names_places = True

    def __call__(self, name: str, num_classes: int) -> nn.Module:
        with _at_most(_MOST_PARAMETERS):
            return _made(name, _config(name, num_classes))

    def trained(self, name: str) -> tuple[nn.Module, str]:
        """The network with the weights of its folder; transformers knows how older files named them.

        Raises:
            ModelError: a file is missing or damaged, or the weights are not all there.
        """
        folder, config = Path(name), _config(name, None)
        with open_weights(_weights(folder)) as stored:
            # Some parameters are not stored, as others are the same.
            with torch.device("meta"), _at_most(2 * len(stored.described) + 100):
                outline = _made(name, config)
            wanted, found = sum(value.nbytes for value in outline.state_dict().values()), stored.num_bytes
            if wanted > 2 * found + _SPARE:  # before transformers takes the memory: half precision takes half the bytes
                raise ModelError(f"{folder} has {found} bytes of weights; its {_CONFIG} is of a network of {wanted}")
            checksum = stored.checksum()
        logging = _transformers().utils.logging
        was_on = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            model, report = _transformers().AutoModelForImageClassification.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except Exception as error:  # whatever its files do to the library
            raise ModelError(f"{folder} cannot be read: {first_line(error)}") from None
        finally:
            if was_on:
                logging.enable_progress_bar()
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if left := sorted(map(str, report[what])):
                raise ModelError(f"the weights in {folder} do not fit its {_CONFIG}: {what} {short(left[0])}")
        return model.eval(), checksum

    def stated(self, name: str, weights: str | None) -> Stated:
        folder = Path(name)
        said = _json(folder, _PREPROCESSOR)
        size = _size(said.get("crop_size") if said.get("do_center_crop") else said.get("size"))
        resampling: Any = said.get("resample")
        return Stated(
            by=f"{folder.name}/{_PREPROCESSOR}",
            normalization=_normalization(said),
            size=size,
            interpolation=_RESAMPLING[resampling] if resampling in range(len(_RESAMPLING)) else None,
            classes=_class_names(_json(folder, _CONFIG).get("id2label")) if weights is None else None,
        )

    def public_name(self, name: str) -> str:
        return Path(name).resolve().name


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise UsageError("hf:FOLDER needs transformers, which is not installed: pip install 'gdkd-cache[hf]'") from None
    return transformers


def _json(folder: Path, name: str) -> dict[str, Any]:
    if not folder.is_dir():
        raise ModelError(f"{folder} is no folder; hf:FOLDER takes one that transformers' save_pretrained wrote")
    try:
        said = json.loads(read_bounded(folder / name, _LIMIT, "file", ModelError))
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise ModelError(f"{folder / name} is no JSON object")
    return said


def _config(name: str, num_classes: int | None) -> Any:
    """The configuration of a folder's network, with its own number of classes or another."""
    said, library = _json(Path(name), _CONFIG), _transformers()
    if (large := _largest(said)) > _LARGEST:
        raise ModelError(f"{Path(name) / _CONFIG} has the number {short(large)}; none may be above {_LARGEST}")
    try:
        config = library.AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever its file does to the library
        raise ModelError(
            f"{Path(name) / _CONFIG} is of no network that transformers knows: {first_line(error)}"
        ) from None
    if num_classes is not None and num_classes != config.num_labels:
        config.num_labels = num_classes
    return config


def _made(name: str, config: Any) -> nn.Module:
    try:
        return _transformers().AutoModelForImageClassification.from_config(config, trust_remote_code=False)
    except Exception as error:  # of other kinds of networks, or settings that do not go together
        raise ModelError(f"{Path(name) / _CONFIG} is of no image classifier: {first_line(error)}") from None


@contextmanager
def _at_most(number: int) -> Iterator[None]:
    """Refuse to make a network of more parameters: a config may ask for layers without end."""
    made = itertools.count(1)

    def counted(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if next(made) > number:
            raise ModelError(f"it has more than {number} parameters")

    hook = register_module_parameter_registration_hook(counted)
    try:
        yield
    finally:
        hook.remove()


def _largest(value: Any) -> float:
    """The largest number anywhere in JSON."""
    largest, left = 0.0, [value]
    while left:
        match left.pop():
            case dict() as found:
                left += found.values()
            case list() as found:
                left += found
            case bool():
                pass
            case int() | float() as found:
                largest = max(largest, found)
    return largest


def _weights(folder: Path) -> Path:
    """The file of a folder's weights, or the index of several."""
    if found := next((folder / name for name in (_WEIGHTS, _INDEX) if (folder / name).is_file()), None):
        return found
    raise ModelError(f"{folder} has no {_WEIGHTS}; save the network again with save_pretrained, or name --weights FILE")


def _normalization(said: dict[str, Any]) -> Normalization | None:
    """Mean and deviation for pixels in 0..1; None where the processor has other ways."""
    factor = said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1.0
    mean: Any = said.get("image_mean")
    std: Any = said.get("image_std")
    if not said.get("do_normalize", mean is not None):
        mean, std = [0.0] * 3, [1.0] * 3
    lists = isinstance(mean, list) and isinstance(std, list) and len(mean) == len(std) == 3
    if any(said.get(way) for way in _OWN_WAYS) or not lists or not isinstance(factor, int | float):
        return None
    scale = factor * 255  # (pixel * factor - mean) / std, of pixels in 0..255
    if not (math.isfinite(scale) and scale > 0):
        return None
    if abs(scale - 1) < 1e-6:
        scale = 1.0
    try:
        return Normalization(tuple(float(m) / scale for m in mean), tuple(float(s) / scale for s in std))
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"image_mean and image_std in {_PREPROCESSOR} are no statistics: {error}") from None


def _size(said: Any) -> tuple[int, int] | None:
    if isinstance(said, dict):
        said = [said.get("height", said.get("shortest_edge")), said.get("width", said.get("shortest_edge"))]
    sides = said if isinstance(said, list) else [said, said]
    if len(sides) == 2 and all(type(side) is int and 0 < side < 2**16 for side in sides):
        return sides[0], sides[1]
    return None


def _class_names(labels: Any) -> tuple[str, ...] | None:
    """Of a config's `id2label`: from 0 on, without gaps."""
    if not isinstance(labels, dict) or not all(str(number) in labels for number in range(len(labels))):
        return None
    return tuple(str(labels[str(number)]) for number in range(len(labels)))


HF = _Folders()
