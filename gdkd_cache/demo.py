"""The main job on scikit-learn's digits: a teacher, its cache, and one student that few labels teach in three ways."""

import json
import logging
import multiprocessing
import shutil
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from gdkd_cache.building.build import build
from gdkd_cache.building.options import BuildOptions
from gdkd_cache.cache.cache import open_cache
from gdkd_cache.data.loader import end_with_parent
from gdkd_cache.data.source import ArraySource
from gdkd_cache.data.sources.registry import open_source
from gdkd_cache.errors import CacheError
from gdkd_cache.models.opening import open_network
from gdkd_cache.progress import progress
from gdkd_cache.seeding import permutation
from gdkd_cache.terminal import log_lines, say, say_table
from gdkd_cache.training.memory import peak_bytes, resident_bytes
from gdkd_cache.training.options import TrainOptions
from gdkd_cache.training.train import Views, train

_TEACHER, _STUDENT, _RECIPE = "cnn-xl", "cnn-s", "crop"
_TEACHER_EPOCHS, _STUDENT_EPOCHS, _NUM_VIEWS = 8, 16, 8
_NUM_LABELS, _NUM_SEEDS = 100, 5
_LOSS = "gdkd:k=5,w2=2,temperature=4"
_MARKER = "made-by-gdkd-cache-demo"
_WAYS = {
    "cross-entropy": "100 images that have a label, as many steps",
    "GDKD, live teacher": "all images, no label; the teacher runs at every step",
    "GDKD, from the cache": "all images, no label; no teacher in memory, the same views and order",
}


@dataclass(frozen=True)
class _Runs:
    """Students of several seeds: accuracies, images/s of each epoch but the first, memory above the process's floor."""

    accuracies: list[float]
    speeds: list[float]
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
    taught = train(teacher_options, source, eval_source, views=Views(recipe=_RECIPE))
    say(f"      It names {taught.best_accuracy:.1%} of {len(eval_source)} unseen images rightly.")

    say(f"[2/5] A cache: the teacher sees {_NUM_VIEWS} seeded crops of every image, once.")
    teacher = open_network(_TEACHER, out / "teacher" / "best.safetensors", len(source.classes))
    options = BuildOptions(out=out / "digits.zarr", num_views=_NUM_VIEWS, recipe=_RECIPE, losses=(_LOSS,))
    built = build(options, source, teacher)
    bytes_per_view = built.manifest.num_bytes / built.rows_computed
    codec, errors = built.manifest.identity.codec.name, built.manifest.identity.fidelity.gradient_error
    say(
        f"      {built.rows_computed} views at {bytes_per_view:.1f} bytes each (codec {codec}), gradient error "
        f"{max(errors.values()):.3f}; {built.manifest.digest[:23]}..."
    )

    runs = {}
    for number, (way, remark) in enumerate(_WAYS.items(), start=3):
        say(f"[{number}/5] The student {_STUDENT}, {_NUM_SEEDS} times, with {way}: {remark}.")
        # A process of its own, so that its peak memory is its own.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent) as pool:
            runs[way] = pool.submit(_train_students, way, out).result()

    rows = []
    for way, run in runs.items():
        mean, spread = statistics.mean(run.accuracies), statistics.stdev(run.accuracies)
        rows.append(
            (
                way,
                "none" if way.startswith("GDKD") else str(_NUM_LABELS),
                f"{mean:.1%} +- {spread * 100:.1f}",
                f"{statistics.median(run.speeds):,.0f}",
                f"{run.peak_bytes / 2**20:,.0f} MiB",
                f"{bytes_per_view:.1f}" if way.endswith("cache") else "-",
            )
        )
    say_table(("student trained with", "labels", "test accuracy", "images/s", "memory", "bytes a view"), rows)
    say(
        f"{_NUM_SEEDS} seeds: mean and deviation; the median epoch's speed; memory beyond the process and its data.",
        "With GDKD the same initial weights and the same images in the same order. What the teacher knows of images",
        "without a label reaches the student from the cache, at the speed of cross-entropy, in no teacher's memory.",
        "Next, on your own data (one folder a class under train/ and val/):",
        "  gdkd-cache train --loss ce --data imagefolder:DATA --student resnet32x4 --epochs 60 --out teacher",
        "  gdkd-cache build --data imagefolder:DATA --teacher resnet32x4 --weights teacher/best.safetensors"
        " --views 40 --out my.zarr",
        "  gdkd-cache train --loss gdkd --data imagefolder:DATA --cache my.zarr --student resnet8x4 --epochs 60"
        " --out student",
    )


def _train_students(way: str, out: Path) -> _Runs:
    """Train the student with several seeds in one of the three ways; runs in a process of its own."""
    log_lines(logging.WARNING)
    source, eval_source = open_source("digits"), open_source("digits", split="test")
    assert isinstance(source, ArraySource)
    views, floor = Views(recipe=_RECIPE, num_views=_NUM_VIEWS), _resident_bytes()
    teacher = None
    if way == "GDKD, live teacher":
        teacher = open_network(_TEACHER, out / "teacher" / "best.safetensors", len(source.classes)).logits
    accuracies, speeds = [], []
    with progress("train", _NUM_SEEDS, "students") as advance:
        for seed in range(_NUM_SEEDS):
            folder = out / "students" / way.replace(", ", "-").replace(" ", "-") / str(seed)
            options = TrainOptions(out=folder, student=_STUDENT, epochs=_STUDENT_EPOCHS, seed=seed)
            if way == "cross-entropy":
                few = _labelled(source, seed)
                options = replace(options, epochs=_STUDENT_EPOCHS * len(source) // len(few))
                result = train(options, few, eval_source, views=views)
            else:
                options = replace(options, loss=_LOSS, ce_weight=0.0)
                cache = open_cache(out / "digits.zarr") if teacher is None else None
                result = train(
                    options, source, eval_source, cache=cache, views=None if cache else views, teacher=teacher
                )
            accuracies.append(result.last_accuracy)
            lines = (folder / "metrics.jsonl").read_text().splitlines()
            speeds += [json.loads(line)["images_per_second"] for line in lines[1:]]
            advance(1)
    return _Runs(accuracies, speeds, _peak_bytes() - floor)


def _labelled(source: ArraySource, seed: int) -> ArraySource:
    """The images whose labels are known: others for each seed."""
    rows = np.sort(permutation(seed, "demo-labels", 0, len(source))[:_NUM_LABELS])
    keys = [source.keys[row] for row in rows.tolist()]
    return replace(source, images=source.images[rows], labels=source.labels[rows], keys=keys)


def _peak_bytes() -> int:
    """The most memory held so far: on the GPU where there is one, else resident in this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return peak_bytes()


def _resident_bytes() -> int:
    """The memory held now, likewise."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    return resident_bytes() or peak_bytes()
