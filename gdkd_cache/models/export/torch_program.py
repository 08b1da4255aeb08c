"""A program of torch.export: runs where torch is, without this package."""

import io
from pathlib import Path

import torch
from torch import Tensor

from gdkd_cache.models.export.base import METADATA_KEY, Exported, ExportFormat


class TorchProgram(ExportFormat):
    """`.pt2`, for any number of images; what is said of it is the extra file `gdkd_cache` in it."""

    suffix = ".pt2"

    def encode(self, exported: Exported) -> bytes:
        with torch.no_grad():
            program = torch.export.export(
                exported.program, (exported.example,), dynamic_shapes=({0: torch.export.Dim("batch")},)
            )
        file = io.BytesIO()
        torch.export.save(program, file, extra_files={METADATA_KEY: exported.metadata})
        return file.getvalue()

    def run(self, data: bytes, exported: Exported, images: Tensor) -> Tensor:
        return torch.export.load(io.BytesIO(data)).module()(images)

    def hint(self, out: Path) -> str:
        return f"torch.export.load({str(out)!r}).module()(images)"
