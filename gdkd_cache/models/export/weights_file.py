"""Weights with their card, as `train` writes them: for this package itself, and for all that read safetensors."""

from pathlib import Path

import safetensors.torch
from torch import Tensor
from torch.func import functional_call

from gdkd_cache.models.export.base import Exported, ExportFormat, main_output
from gdkd_cache.models.weights import encode_weights


class WeightsFormat(ExportFormat):
    """`.safetensors` with the card in the header: weights of others become such as need no `--model` and no mean."""

    suffix = ".safetensors"
    is_program = False

    def encode(self, exported: Exported) -> bytes:
        return encode_weights(exported.network.model.state_dict(), exported.card)

    def run(self, data: bytes, exported: Exported, images: Tensor) -> Tensor:
        return main_output(functional_call(exported.network.model, safetensors.torch.load(data), (images,)))

    def hint(self, out: Path) -> str:
        return (
            f"gdkd-cache eval --weights {out} --data ..., or gdkd_cache.open_network(None, {str(out)!r}, num_classes)"
        )
