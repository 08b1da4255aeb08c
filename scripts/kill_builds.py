#!/usr/bin/env python
"""Kill builds at random instants (SIGKILL), resume each, and compare: every digest must be the uninterrupted build's.

    python scripts/kill_builds.py --count 100 --seed 0

Builds are of 512 of scikit-learn's digits, two views in eight shards each, with an untrained cnn-s as teacher; every
other one with a fitted codec. Exits with 1 when a digest differs.
"""

import argparse
import dataclasses
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

import torch

from gdkd_cache import open_cache, open_source
from gdkd_cache.codec import CodecRequest
from gdkd_cache.data import ArraySource
from gdkd_cache.models import ModelCard, build_model, save_weights
from gdkd_cache.pipeline.build import BuildOptions, build
from gdkd_cache.pipeline.teacher import open_teacher

CODECS = ("topk", "transform")
ROWS = 512
SIGKILLED = -9


def save_teacher(path: Path, seed: int = 0) -> None:
    """Weights of an untrained cnn-s whose logits have a trained one's spread."""
    torch.manual_seed(seed)
    model = build_model("cnn-s", 10)
    with torch.no_grad():
        for parameter in list(model.parameters())[-2:]:
            parameter.mul_(10)
    save_weights(model, ModelCard(name="cnn-s", num_classes=10, size=(8, 8), mean=(0.3,) * 3, std=(0.4,) * 3), path)


def some_digits(rows: int) -> ArraySource:
    """The first of scikit-learn's digits."""
    source = open_source("digits")
    assert isinstance(source, ArraySource)
    part = {name: getattr(source, name)[:rows] for name in ("images", "labels", "keys")}
    return dataclasses.replace(source, **part)


def build_digits(out: Path, weights: Path, codec: str) -> None:
    """Build, or go on building, a cache of two views."""
    source = some_digits(ROWS)
    teacher = open_teacher("cnn-s", weights, source, device="cpu")
    request = CodecRequest(spec=codec)
    options = BuildOptions(out=out, num_views=2, request=request, batch_size=32, num_workers=0, shard_rows=ROWS // 8)
    build(options, source, teacher)


def run(context: ForkServerContext, out: Path, weights: Path, codec: str, kill_after: float | None = None) -> bool:
    """Build in a process of its own; whether it was killed before its end."""
    process = context.Process(target=build_digits, args=(out, weights, codec))
    process.start()
    process.join(kill_after)
    process.kill()
    process.join()
    if process.exitcode not in (0, SIGKILLED):
        raise SystemExit(f"a build failed with exit code {process.exitcode}")
    return process.exitcode == SIGKILLED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="how many kills")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gdkd_cache.pipeline.build", "gdkd_cache.pipeline.teacher", "sklearn.datasets"])
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "teacher.safetensors"
        save_teacher(weights)
        expected, seconds = {}, {}
        for codec in CODECS:
            for _ in range(2):  # the first also imports
                start = time.monotonic()
                whole = Path(folder) / f"{codec}-{start}.zarr"
                run(context, whole, weights, codec)
                expected[codec], seconds[codec] = open_cache(whole).manifest.digest, time.monotonic() - start
        kills = equal = resumed = 0
        while kills < arguments.count:
            codec, out = CODECS[kills % len(CODECS)], Path(folder) / "killed.zarr"
            if run(context, out, weights, codec, random.random() * seconds[codec]):
                kills += 1
                resumed += (out / "ledger").exists()  # some shards were committed
                run(context, out, weights, codec)
                cache = open_cache(out)
                damaged = [problem for _, problem in cache.reader.problems() if problem is not None]
                equal += cache.manifest.digest == expected[codec] and not damaged
                print(f"\r{kills} kills, {equal} digests equal", end="", file=sys.stderr)
            shutil.rmtree(out, ignore_errors=True)
    print(f"\n{resumed} of {kills} kills came after the first shard and before the end")
    print(f"{equal} of {kills} digests equal the uninterrupted build's")
    raise SystemExit(equal != kills)


if __name__ == "__main__":
    main()
