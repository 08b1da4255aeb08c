"""A model for ONNX runtimes, checked with one."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from gdkd_cache.models.export.base import METADATA_KEY, Exported, ExportFormat


class OnnxModel(ExportFormat):
    """`.onnx`, `images` to `logits`, for any number of images; what is said of it is the property `gdkd_cache`."""

    suffix = ".onnx"
    libraries = ("onnx", "onnxscript", "onnxruntime")
    extra = "onnx"
    most_bytes = 2**31 - 2**24  # a protobuf, which such a file is, ends at 2 GiB

    def encode(self, exported: Exported) -> bytes:
        with torch.no_grad(), _quiet():
            made = torch.onnx.export(
                exported.program,
                (exported.example,),
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: "batch"},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        assert made is not None
        made.model.metadata_props[METADATA_KEY] = exported.metadata
        return made.model_proto.SerializeToString()

    def run(self, data: bytes, exported: Exported, images: Tensor) -> Tensor:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # else it binds threads to cores that may not be ours
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        return torch.from_numpy(logits)

    def hint(self, out: Path) -> str:
        return f"onnxruntime.InferenceSession({str(out)!r}).run(['logits'], {{'images': images}})"


@contextmanager
def _quiet() -> Iterator[None]:
    """Have the exporter keep its steps to itself: to it, they are worth a line each."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
