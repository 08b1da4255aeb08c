"""torchvision's networks."""

import hashlib
import re
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import nn

from gdkd_cache.errors import ModelError, UsageError, first_line
from gdkd_cache.models.libraries import Library, Stated, centre_crop
from gdkd_cache.models.normalization import Normalization

_OPTIONS = {"googlenet": {"init_weights": True}, "inception_v3": {"init_weights": True}}  # else torchvision warns
_HEADS = ("aux1", "aux2", "AuxLogits")


class _Torchvision(Library):
    """torchvision's classifiers, and its enums of weights: `IMAGENET1K_V1`, `DEFAULT`, ..."""

    def __call__(self, name: str, num_classes: int) -> nn.Module:
        """One of torchvision's classifiers, with fresh weights.

        The further heads of some, which torchvision's own training uses, keep their weights and are not trained: the
        logits are those of the last layer alone, also in training.

        Raises:
            UsageError: torchvision has none of that name.
        """
        _require(name)
        model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **_OPTIONS.get(name, {}))
        for child, head in model.named_children():
            if child in _HEADS:
                head.requires_grad_(False)
        return model

    def published(self, name: str, weights: str) -> Path | None:
        chosen = _chosen(name, weights)
        if chosen is None:
            return None
        path = Path(torch.hub.get_dir(), "checkpoints", chosen.url.rpartition("/")[2])
        expected = path.stem.rpartition("-")[2]  # torch names files by the start of their SHA-256
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(chosen.url, str(path), expected, progress=False)
            except (OSError, URLError, RuntimeError) as error:
                raise ModelError(
                    f"weights {weights} of torchvision:{name} cannot be fetched ({first_line(error)}): put "
                    f"{path.name} of torchvision's model zoo into {path.parent}"
                ) from None
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if re.fullmatch("[0-9a-f]{8,}", expected) and not found.startswith(expected):
            raise ModelError(f"weights {path} are no longer torchvision's (SHA-256 {found[:8]}...): remove that file")
        return path

    def stated(self, name: str, weights: str | None) -> Stated | None:
        chosen = None if weights is None else _chosen(name, weights)
        if chosen is None:
            return None  # files of others were trained in ways that torchvision does not know
        made: Any = chosen.transforms()
        side = made.crop_size[0]
        return Stated(
            by=f"torchvision's {chosen.name}",
            normalization=Normalization(tuple(made.mean), tuple(made.std)),
            size=(side, side),
            interpolation=made.interpolation.value,
            eval_recipe=centre_crop(side, made.resize_size[0]),
            classes=tuple(chosen.meta["categories"]),
        )


def _require(name: str) -> None:
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise UsageError(f"model {f'torchvision:{name}'!r}: torchvision has no classifier {name!r}")


def _chosen(name: str, weights: str) -> Any:
    """The member of a network's enum of weights; None where it has none of that name."""
    _require(name)
    return getattr(torchvision.models.get_model_weights(name), "__members__", {}).get(weights)


TORCHVISION = _Torchvision()
