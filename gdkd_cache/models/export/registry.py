"""The formats of exported networks by name: to add one, write its file here and name it below."""

from typing import TYPE_CHECKING

from gdkd_cache.registry import Entry, Registry

if TYPE_CHECKING:
    from gdkd_cache.models.export.base import ExportFormat

_HERE = "gdkd_cache.models.export"

FORMATS: "Registry[type[ExportFormat]]" = Registry(
    "format",
    {
        "safetensors": Entry(f"{_HERE}.weights_file:WeightsFormat", "weights with their card (.safetensors)"),
        "torch-export": Entry(f"{_HERE}.torch_program:TorchProgram", "a program of torch.export (.pt2)"),
        "onnx": Entry(f"{_HERE}.onnx_model:OnnxModel", "a model for ONNX runtimes (.onnx; extra onnx)"),
    },
    base=f"{_HERE}.base:ExportFormat",
)
