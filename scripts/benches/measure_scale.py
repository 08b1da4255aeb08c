"""Time and memory of a build and a training of one size: a process of the row `scale`.

python -m benches.measure_scale VIEWS ROWS CLASSES CODEC
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benches.memory import begin_peak, peak
from benches.pictures import small_images
from gdkd_cache import open_cache
from gdkd_cache.building.build import build
from gdkd_cache.building.options import BuildOptions
from gdkd_cache.cache import held
from gdkd_cache.data.source import ArraySource
from gdkd_cache.models.network import Network
from gdkd_cache.store.facts import TeacherFacts

_BATCH = 1024


def teacher_of(source: ArraySource) -> Network:
    """One linear layer, which costs next to nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, len(source.classes))).eval()
    facts = TeacherFacts(name="linear", weights=f"sha256:{0:064d}", mean=source.mean, std=source.std)
    device = torch.device("cpu")
    return Network(model=model, mean=source.mean, std=source.std, device=device, precision="float32", description=facts)


def measure(call: Callable[[], None]) -> tuple[float, int]:
    """Seconds, and the most bytes taken meanwhile."""
    before, start = begin_peak(), time.perf_counter()
    call()
    return time.perf_counter() - start, peak() - before


def build_and_train(folder: Path, num_views: int, source: ArraySource, codec: str) -> dict[str, float]:
    """A build, and a training without a student: every view loaded, every batch decoded, in a shuffled order."""
    teacher, out = teacher_of(source), folder / "cache.zarr"

    def make() -> None:
        options = BuildOptions(
            out=out, num_views=num_views, recipe="crop:padding=1", codec=codec, batch_size=_BATCH, accept_teacher=True
        )
        build(options, source, teacher)

    def train() -> None:
        data = open_cache(out).dataset(source)
        for epoch in range(num_views):
            for _ in data.loader(epoch, batch_size=_BATCH, shuffle=True, normalize=None):
                pass

    build_seconds, build_bytes = measure(make)
    train_seconds, train_bytes = measure(train)
    return {
        "build seconds": build_seconds,
        "build bytes": build_bytes,
        "train seconds": train_seconds,
        "train bytes": train_bytes,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    assert held._RESIDENT_BYTES
    held._RESIDENT_BYTES = 0  # small views are all kept, up to that budget; it is large ones that must come and go
    *numbers, codec = sys.argv[1:]
    num_views, num_rows, num_classes = map(int, numbers)
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        build_and_train(
            Path(first), 1, small_images(64, 10, 8), "topk"
        )  # what is loaded at first use counts in no size
        print(json.dumps(build_and_train(Path(second), num_views, small_images(num_rows, num_classes, 8), codec)))
