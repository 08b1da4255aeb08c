"""The main job on scikit-learn's digits: a teacher, its cache, and one student trained in three ways."""

import logging
import multiprocessing
import resource
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from gdkd_cache.building.build import build
from gdkd_cache.building.options import BuildOptions
from gdkd_cache.cache.cache import open_cache
from gdkd_cache.data.loader import end_with_parent
from gdkd_cache.data.sources.registry import open_source
from gdkd_cache.errors import CacheError
from gdkd_cache.models.network import open_network
from gdkd_cache.terminal import log_lines, say, say_table
from gdkd_cache.training.loop import TrainResult
from gdkd_cache.training.options import CROSS_ENTROPY, TrainOptions
from gdkd_cache.training.train import Views, train

_TEACHER, _STUDENT = "cnn-l", "cnn-s"
_TEACHER_EPOCHS, _STUDENT_EPOCHS, _NUM_VIEWS = 8, 16, 8
_LOSS = "gdkd:k=5,w2=2,temperature=4"
_MARKER = "made-by-gdkd-cache-demo"


@dataclass(frozen=True)
class _Run:
    result: TrainResult
    peak_bytes: int


def run_demo(out: Path) -> None:
    """Run the demo in a folder of its own, replacing an earlier demo there; prints a table to stdout.

    Raises:
        CacheError: the folder is not empty and not an earlier demo's.
        SourceError: scikit-learn is not installed.
    """
    if out.exists() and any(out.iterdir()) and not (out / _MARKER).exists():
        raise CacheError(f"{out} is not empty and no earlier demo; name another folder with --out")
    source, eval_source = open_source("digits"), open_source("digits", split="test")
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / _MARKER).touch()

    say(f"[1/5] A teacher: {_TEACHER} learns {len(source)} real images of digits with cross-entropy.")
    teacher_options = TrainOptions(out=out / "teacher", student=_TEACHER, epochs=_TEACHER_EPOCHS)
    taught = train(teacher_options, source, eval_source, views=Views())
    say(f"      It names {taught.best_accuracy:.1%} of {len(eval_source)} unseen images rightly.")

    say(f"[2/5] A cache: the teacher sees {_NUM_VIEWS} seeded crop-and-flip views of every image, once.")
    teacher = open_network(_TEACHER, out / "teacher" / "best.safetensors", len(source.classes))
    built = build(BuildOptions(out=out / "digits.zarr", num_views=_NUM_VIEWS, losses=(_LOSS,)), source, teacher)
    bytes_per_view = built.manifest.num_bytes / built.rows_computed
    codec, errors = built.manifest.identity.codec.name, built.manifest.identity.fidelity.gradient_error
    say(
        f"      {built.rows_computed} views at {bytes_per_view:.1f} bytes each (codec {codec}), gradient error "
        f"{max(errors.values()):.3f}; {built.manifest.digest[:23]}..."
    )

    ways = {
        "cross-entropy": ("ce", "no teacher at all"),
        "GDKD, live teacher": ("live", "the teacher runs at every step"),
        "GDKD, from the cache": ("cache", "no teacher in memory, the same views and order"),
    }
    runs = {}
    for number, (name, (way, remark)) in enumerate(ways.items(), start=3):
        say(f"[{number}/5] The student {_STUDENT} learns with {name}: {remark}.")
        # A process of its own, so that its peak memory is its own.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent) as pool:
            runs[name] = pool.submit(_train_student, way, out).result()

    rows = []
    for name, run in runs.items():
        stored = f"{bytes_per_view:.1f}" if name.endswith("cache") else "-"
        result = run.result
        memory = f"{run.peak_bytes / 2**20:,.0f} MiB"
        rows.append((name, f"{result.last_accuracy:.1%}", f"{result.images_per_second:,.0f}", memory, stored))
    say_table(("student trained with", "test accuracy", "images/s", "peak memory", "bytes a view"), rows)
    say(
        "Same initial weights, same images, same order. One small run: a point of accuracy is noise.",
        "Next, on your own data (one folder a class under train/ and val/):",
        "  gdkd-cache train --loss ce --data imagefolder:DATA --student resnet32x4 --epochs 60 --out teacher",
        "  gdkd-cache build --data imagefolder:DATA --teacher resnet32x4 --weights teacher/best.safetensors"
        " --views 40 --out my.zarr",
        "  gdkd-cache train --loss gdkd --data imagefolder:DATA --cache my.zarr --student resnet8x4 --epochs 60"
        " --out student",
    )


def _train_student(way: str, out: Path) -> _Run:
    """Train the student in one of the three ways; runs in a process of its own."""
    log_lines(logging.INFO, "      ")
    source, eval_source = open_source("digits"), open_source("digits", split="test")
    loss = CROSS_ENTROPY if way == "ce" else _LOSS
    options = TrainOptions(out=out / f"student-{way}", student=_STUDENT, epochs=_STUDENT_EPOCHS, loss=loss)
    views = Views(num_views=_NUM_VIEWS)
    if way == "cache":
        result = train(options, source, eval_source, cache=open_cache(out / "digits.zarr"))
    elif way == "live":
        teacher = open_network(_TEACHER, out / "teacher" / "best.safetensors", len(source.classes))
        result = train(options, source, eval_source, views=views, teacher=teacher.logits)
    else:
        result = train(options, source, eval_source, views=views)
    return _Run(result, _peak_bytes())


def _peak_bytes() -> int:
    """The most memory held so far: on the GPU where there is one, else resident in this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":
        # Not getrusage: there a child starts from its parent's peak.
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
