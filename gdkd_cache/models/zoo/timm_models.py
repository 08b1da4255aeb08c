"""timm's networks, where timm is installed."""

import math
from pathlib import Path
from typing import Any

from torch import nn

from gdkd_cache.errors import ModelError, UsageError, first_line
from gdkd_cache.models.libraries import Library, Stated, centre_crop
from gdkd_cache.models.normalization import Normalization

_PRETRAINED = "pretrained"
_FILE = "model.safetensors"


class _Timm(Library):
    """timm's classifiers, and the weights that it calls pretrained."""

    def __call__(self, name: str, num_classes: int) -> nn.Module:
        _require(name)
        return _timm().create_model(name, pretrained=False, num_classes=num_classes)

    def published(self, name: str, weights: str) -> Path | None:
        if weights != _PRETRAINED:
            return None
        _require(name)
        repository = _pretrained(name).get("hf_hub_id")
        if not repository:
            raise ModelError(f"timm has no {_PRETRAINED} weights of {name} that it can fetch; name a file of them")
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(repository, _FILE))
        except Exception as error:  # whatever a network, a hub or a disk may do
            raise ModelError(
                f"weights {_PRETRAINED} of timm:{name} cannot be fetched ({first_line(error)}): get {_FILE} of "
                f"{repository} elsewhere, and name it with --weights FILE"
            ) from None

    def stated(self, name: str, weights: str | None) -> Stated | None:
        """What timm says of a network, which its own programs also take for files of weights."""
        _require(name)
        pretrained = _pretrained(name)
        _, height, width = pretrained["input_size"]
        is_square = height == width and pretrained.get("crop_mode", "center") == "center"
        return Stated(
            by="timm's pretrained_cfg",
            normalization=Normalization(tuple(pretrained["mean"]), tuple(pretrained["std"])),
            size=(height, width),
            interpolation=pretrained["interpolation"],
            eval_recipe=centre_crop(height, math.floor(height / pretrained["crop_pct"])) if is_square else None,
        )


def _timm() -> Any:
    try:
        import timm
    except ImportError:
        raise UsageError("timm:NAME needs timm, which is not installed: pip install 'gdkd-cache[timm]'") from None
    return timm


def _require(name: str) -> None:
    """Refuse what is no name of timm's own: its places on hubs and disks, too."""
    if not (name.replace(".", "").isidentifier() and _timm().is_model(name)):
        raise UsageError(f"model {f'timm:{name}'!r}: timm has no network {name!r}")


def _pretrained(name: str) -> dict[str, Any]:
    try:
        return _timm().models.get_pretrained_cfg(name).to_dict()
    except (RuntimeError, AttributeError):  # another tag, or a network that has none
        raise UsageError(f"model {f'timm:{name}'!r}: timm has no weights of that tag") from None


TIMM = _Timm()
