"""torchvision's networks: of classes, and dense ones."""

import hashlib
import re
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import segmentation
from torchvision.models.segmentation import LRASPP

from gdkd_cache.errors import ModelError, UsageError, first_line
from gdkd_cache.models.cells import MAIN, upsampled
from gdkd_cache.models.libraries import Library, Stated, centre_crop
from gdkd_cache.models.normalization import Normalization

_OPTIONS = {"googlenet": {"init_weights": True}, "inception_v3": {"init_weights": True}}  # else torchvision warns
_DENSE = frozenset(torchvision.models.list_models(module=segmentation))
_HEADS = ("aux1", "aux2", "AuxLogits")


class _Cells(nn.Module):
    """A segmentation network of torchvision's without its upsampling: its children under their names, and so its keys.

    Attributes:
        outputs: `main` and, where it has an auxiliary head, `aux`, which is resized to the grid of the other.
    """

    def __init__(self, made: Any) -> None:
        super().__init__()
        self.backbone, self.classifier = made.backbone, made.classifier
        self.aux_classifier: nn.Module | None = getattr(made, "aux_classifier", None)
        self.outputs = (MAIN,) if self.aux_classifier is None else (MAIN, "aux")
        self._takes_all = isinstance(made, LRASPP)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits [batch, class, height, width] at the network's stride, of float images [batch, 3, height, width]."""
        maps = self.backbone(images)
        main = self.classifier(maps if self._takes_all else maps["out"])
        if self.aux_classifier is None:
            return {MAIN: main}
        return {MAIN: main, "aux": upsampled(self.aux_classifier(maps["aux"]), (main.shape[2], main.shape[3]))}


class _Torchvision(Library):
    """torchvision's networks, and its enums of weights: `IMAGENET1K_V1`, `DEFAULT`, ..."""

    def __call__(self, name: str, num_classes: int) -> nn.Module:
        """One of torchvision's networks, with fresh weights.

        The further heads of some classifiers, which torchvision's own training uses, keep their weights and are not
        trained: the logits are those of the last layer alone, also in training. A dense network gives cells, of its
        auxiliary head too.

        Raises:
            UsageError: torchvision has none of that name.
        """
        _require(name)
        if name in _DENSE:
            options: dict[str, Any] = {} if name.startswith("lraspp") else {"aux_loss": True}
            options |= {"weights": None, "weights_backbone": None, "num_classes": num_classes}
            return _Cells(torchvision.models.get_model(name, **options))
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
        if name in _DENSE:
            normalization = Normalization(tuple(made.mean), tuple(made.std))
            classes = tuple(chosen.meta["categories"])
            return Stated(by=f"torchvision's {chosen.name}", normalization=normalization, classes=classes)
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
    if name not in torchvision.models.list_models(module=torchvision.models) and name not in _DENSE:
        raise UsageError(f"model {f'torchvision:{name}'!r}: torchvision has no classifier, or dense network, {name!r}")


def _chosen(name: str, weights: str) -> Any:
    """The member of a network's enum of weights; None where it has none of that name."""
    _require(name)
    return getattr(torchvision.models.get_model_weights(name), "__members__", {}).get(weights)


TORCHVISION = _Torchvision()
