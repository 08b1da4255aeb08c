"""Builds on a Ray cluster beside plain ones of as many processes."""

import itertools
import logging
import os
import uuid
from collections.abc import Iterator
from typing import Any

from kill_builds import save_untrained

from benches.pictures import photographs
from benches.timing import Bench, Figure, ratios
from gdkd_cache.building.build import build
from gdkd_cache.building.options import BuildOptions
from gdkd_cache.building.ray_build import TaskRendering
from gdkd_cache.models.opening import open_network
from gdkd_cache.terminal import say


def ray_overhead(bench: Bench) -> Iterator[Figure]:
    """A build of JPEG files by a teacher and one renderer: a task of a cluster that runs, or a worker process."""
    try:
        import ray
    except ImportError:
        say("ray-overhead: skipped, as Ray is not installed", error=True)
        return
    source, weights = photographs(bench.jpegs, 32 if bench.smoke else 768), bench.folder / "teacher.safetensors"
    save_untrained(weights, len(source.classes), (64, 64))
    teacher, numbers = open_network("cnn-s", weights, len(source.classes), device="cpu"), itertools.count()

    def make(**named: Any) -> None:
        out = bench.folder / f"{next(numbers)}.zarr"
        options = BuildOptions(
            out=out, num_views=8, recipe="imagenet:size=64", codec="topk:k=4", num_workers=1, accept_teacher=True,
            images_in_memory=0,
        )  # fmt: skip
        build(options, source, teacher, **named)

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init("local", num_cpus=1, logging_level=logging.ERROR, include_dashboard=False)
    rendering = TaskRendering(uuid.uuid4().hex, 1, asked=True)
    times = bench.seconds({"plain": make, "ray": lambda: make(render=rendering)}, least=0)
    ray.shutdown()
    what = "a build of JPEG files, rendered by a task of Ray's"
    yield Figure(what=what, against="by a worker process", ratios=ratios(times["ray"], times["plain"]), goal="<= 1.1")
