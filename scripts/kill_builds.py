#!/usr/bin/env python
"""Kill builds at random instants (SIGKILL), resume each, and compare: every digest must be the uninterrupted build's.

    python scripts/kill_builds.py --count 100 --seed 0
    python scripts/kill_builds.py --count 100 --seed 0 --processes 2 --data 'wds:train-{000000..000003}.tar'

Builds are of the first 512 images of scikit-learn's digits (or of --data), two views in eight shards each, with an
untrained cnn-s as teacher; every other one with a fitted codec. With several processes, all build the one cache at
once, each is killed at an instant of its own (one that outlives the others goes on alone), and as many resume. Exits
with 1 when a digest differs.
"""

import argparse
import dataclasses
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

import torch

from gdkd_cache import open_cache, open_source
from gdkd_cache.building.build import build
from gdkd_cache.building.options import BuildOptions
from gdkd_cache.data.source import ArraySource
from gdkd_cache.models.build import build_model
from gdkd_cache.models.card import ModelCard
from gdkd_cache.models.opening import open_network
from gdkd_cache.models.weights import save_weights

CODECS = ("topk", "transform")
ROWS = 512
SIGKILLED = -9


def first_rows(spec: str, rows: int) -> ArraySource:
    """The first images of a source that lies in memory."""
    source = open_source(spec)
    assert isinstance(source, ArraySource)
    part = {name: getattr(source, name)[:rows] for name in ("images", "labels", "keys")}
    return dataclasses.replace(source, **part)


def save_teacher(path: Path, source: ArraySource, seed: int = 0) -> None:
    """As `save_untrained`, for a source."""
    height, width = source.images.shape[2:]
    save_untrained(path, len(source.classes), (height, width), seed)


def save_untrained(path: Path, num_classes: int, size: tuple[int, int], seed: int = 0) -> None:
    """Weights of an untrained cnn-s whose logits have a trained one's spread."""
    torch.manual_seed(seed)
    model = build_model("cnn-s", num_classes)
    with torch.no_grad():
        for parameter in list(model.parameters())[-2:]:
            parameter.mul_(10)
    card = ModelCard(name="cnn-s", num_classes=num_classes, size=size, mean=(0.3,) * 3, std=(0.4,) * 3)
    save_weights(model, card, path)


def build_some(spec: str, out: Path, weights: Path, codec: str) -> None:
    """Build, or go on building, a cache of two views."""
    source = first_rows(spec, ROWS)
    teacher = open_network("cnn-s", weights, len(source.classes), device="cpu")
    options = BuildOptions(
        out=out, num_views=2, codec=codec, batch_size=32, num_workers=0, shard_rows=ROWS // 8, accept_teacher=True
    )
    build(options, source, teacher)


def run(context: ForkServerContext, build: tuple[str, Path, Path, str], instants: Sequence[float | None]) -> int:
    """`build_some` in a process for each instant (in seconds) when it is killed; how many were, before their end."""
    start = time.monotonic()
    running = [(context.Process(target=build_some, args=build), instant) for instant in instants]
    for process, _ in running:
        process.start()
    for process, instant in sorted(running, key=lambda one: float("inf") if one[1] is None else one[1]):
        process.join(None if instant is None else max(start + instant - time.monotonic(), 0))
        process.kill()
        process.join()
    codes = [process.exitcode for process, _ in running]
    if failed := [code for code in codes if code not in (0, SIGKILLED)]:
        raise SystemExit(f"a build failed with exit code {failed[0]}")
    return codes.count(SIGKILLED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="how many builds to kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, help="how many build the cache at once")
    parser.add_argument("--data", default="digits", help="small images, such as wds:PATTERN")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gdkd_cache.building.build", "gdkd_cache.models.opening", "sklearn.datasets"])
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "teacher.safetensors"
        save_teacher(weights, first_rows(arguments.data, ROWS))
        expected, seconds = {}, {}
        for codec in CODECS:
            for processes in (1, arguments.processes):  # the first also imports
                start = time.monotonic()
                whole = Path(folder) / f"{codec}-{start}.zarr"
                run(context, (arguments.data, whole, weights, codec), [None] * processes)
                seconds[codec] = time.monotonic() - start
                digest = open_cache(whole).manifest.digest
                if expected.setdefault(codec, digest) != digest:
                    raise SystemExit(f"{processes} processes build another cache than one")
        kills = equal = resumed = 0
        while kills < arguments.count:
            codec, out = CODECS[kills % len(CODECS)], Path(folder) / "killed.zarr"
            build_it = (arguments.data, out, weights, codec)
            instants = [random.random() * seconds[codec] for _ in range(arguments.processes)]
            if run(context, build_it, instants):
                kills += 1
                resumed += (out / "ledger").exists()  # some shards were committed
                run(context, build_it, [None] * arguments.processes)
                cache = open_cache(out)
                damaged = [problem for _, problem in cache.problems() if problem is not None]
                equal += cache.manifest.digest == expected[codec] and not damaged
                print(f"\r{kills} killed, {equal} digests equal", end="", file=sys.stderr)
            shutil.rmtree(out, ignore_errors=True)
    print(f"\n{resumed} of {kills} builds were killed after the first shard and before the end")
    print(f"{equal} of {kills} digests equal the uninterrupted build's")
    raise SystemExit(equal != kills)


if __name__ == "__main__":
    main()
