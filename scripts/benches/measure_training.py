"""The most memory that a training takes: a process of the row `train-memory`.

python -m benches.measure_training STUDENT -|CACHE|TEACHER LOSS
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benches.memory import begin_peak, peak
from benches.pictures import small_images
from gdkd_cache import open_cache
from gdkd_cache.models.build import build_model
from gdkd_cache.models.normalization import IMAGENET, normalize_pixels
from gdkd_cache.training.train import TrainOptions, Views, train

_CLASSES = 100
_LARGE_SIDE = 224


def live(name: str) -> Callable[[Tensor], Tensor]:
    """A teacher without training, of pixels of 32x32; those of a library see them at 224x224."""
    model = build_model(name, _CLASSES).eval()
    side = _LARGE_SIDE if ":" in name else None

    @torch.inference_mode()
    def logits(pixels: Tensor) -> Tensor:
        images = normalize_pixels(pixels, IMAGENET.mean, IMAGENET.std)
        return model(images if side is None else F.interpolate(images, (side, side), mode="bilinear"))

    return logits


def most(student: str, read: str, loss: str) -> int:
    """Bytes of two steps of 64 images and an evaluation of 64, beyond those of Python and torch without any."""
    before = begin_peak()
    source = small_images(128, _CLASSES)
    with tempfile.TemporaryDirectory() as out:
        options = TrainOptions(
            out=Path(out) / "run",
            student=student,
            epochs=1,
            loss="ce" if read == "-" else loss,
            threads=os.cpu_count(),
            device="cpu",
        )
        evaluated = small_images(64, _CLASSES)
        if read.endswith(".zarr"):
            train(options, source, evaluated, cache=open_cache(read))
        else:
            teacher = None if read == "-" else live(read)
            train(options, source, evaluated, views=Views(recipe="crop-flip"), teacher=teacher)
    return peak() - before


if __name__ == "__main__":
    print(json.dumps({"bytes": most(*sys.argv[1:])}))
