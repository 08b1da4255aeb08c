#!/usr/bin/env python
"""Kill trainings at random instants (SIGKILL), run each again, and compare with one that was not killed.

    python scripts/kill_trainings.py --count 20 --seed 0
    python scripts/kill_trainings.py --count 20 --seed 0 --ranks 2

Trainings are of a small network with batch normalisation and dropout, with GDKD from a cache of the first 512 images
of scikit-learn's digits, an average of the weights, and a state that is saved after every third step. Each is killed
once or more, and run again until it is done. In one process the weights, their average, the optimizer's state and the
metrics (but for speed and memory) must be those of the training that was not killed to the bit; of two ranks, which
sum up gradients, within 1e-6. No epoch may be missing from the metrics, or be there twice. Exits with 1 when something
differs.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch
from kill_builds import SIGKILLED, build_some, first_rows, save_teacher
from safetensors.torch import load_file
from torch import Tensor, nn

from gdkd_cache import open_cache
from gdkd_cache.training.options import TrainOptions
from gdkd_cache.training.train import train

ROWS = 512
EPOCHS = 3
TIMED = ("images_per_second", "memory_bytes")
"""Metrics that no two runs share."""


def small_net(num_classes: int) -> nn.Module:
    """A network that has all kinds of state: running statistics, and random numbers of its own."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, num_classes),
    )


def train_some(cache: Path, out: Path, rank: int, ranks: int, port: int) -> None:
    """Train, or go on training, as one of some ranks."""
    if ranks > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ["TORCHELASTIC_RUN_ID"] = "kills"  # as torchrun sets it
    torch.set_num_threads(1)
    source = first_rows("digits", ROWS)
    options = TrainOptions(
        student="kill_trainings:small_net",
        loss="gdkd",
        epochs=EPOCHS,
        out=out,
        batch_size=32,
        lr=0.02,
        ema=0.9,
        save_every="3",
        num_workers=0,
        threads=1,
    )
    train(options, source, source, cache=open_cache(cache))


def run(context: ForkServerContext, cache: Path, out: Path, ranks: int, instant: float | None) -> bool:
    """`train_some` in so many processes, killed after some seconds; whether they were, before their end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [context.Process(target=train_some, args=(cache, out, rank, ranks, port)) for rank in range(ranks)]
    end = None if instant is None else time.monotonic() + instant
    for process in processes:
        process.start()
    for process in processes:
        process.join(None if end is None else max(end - time.monotonic(), 0))
    for process in processes:
        process.kill()
        process.join()
    codes = [process.exitcode for process in processes]
    # A rank whose partner was killed first ends with an error of its own.
    if SIGKILLED not in codes and any(codes):
        raise SystemExit(f"a training failed with exit codes {codes}")
    return SIGKILLED in codes


def difference(one: Path, other: Path) -> float:
    """The largest difference of two trainings' states and metrics: 0 is to the bit; infinity, other epochs."""
    largest = 0.0
    for name in ("state", "last", "last-ema", "best"):
        ours, theirs = (load_file(folder / f"{name}.safetensors") for folder in (one, other))
        if ours.keys() != theirs.keys():
            return float("inf")
        largest = max([largest, *(_apart(ours[key], theirs[key]) for key in ours if not key.startswith("generator."))])
    lines = [_lines(folder) for folder in (one, other)]
    if [line["epoch"] for line in lines[0]] != list(range(1, EPOCHS + 1)) or len(lines[0]) != len(lines[1]):
        return float("inf")
    for ours, theirs in zip(*lines, strict=True):
        if ours.keys() != theirs.keys():
            return float("inf")
        largest = max([largest, *(_numbers_apart(ours[name], theirs[name]) for name in ours if name not in TIMED)])
    return largest


def _numbers_apart(one: Any, other: Any) -> float:
    """How far numbers of two metrics are apart, whatever they stand in."""
    if isinstance(one, dict):
        one, other = [one[name] for name in sorted(one)], [other[name] for name in sorted(other)]
    if isinstance(one, list):
        return max((_numbers_apart(*pair) for pair in zip(one, other, strict=True)), default=0.0)
    return float(abs(one - other))


def _apart(ours: Tensor, theirs: Tensor) -> float:
    return 0.0 if torch.equal(ours, theirs) else float((ours.double() - theirs.double()).abs().max())


def _lines(folder: Path) -> Sequence[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20, help="how many trainings to kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1, help="how many processes train together, on a CPU")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gdkd_cache.training.train", "gdkd_cache.models.opening", "sklearn.datasets"])
    limit = 0.0 if arguments.ranks == 1 else 1e-6
    with tempfile.TemporaryDirectory() as folder:
        teacher, cache, whole = (Path(folder) / name for name in ("teacher.safetensors", "c.zarr", "whole"))
        save_teacher(teacher, first_rows("digits", ROWS))
        build_some("digits", cache, teacher, "topk")
        run(context, cache, Path(folder) / "first", arguments.ranks, None)  # the first also imports
        start = time.monotonic()
        run(context, cache, whole, arguments.ranks, None)
        seconds = time.monotonic() - start
        equal = midway = kills = most = 0
        while equal + most < arguments.count:
            out, killed, resumed = Path(folder) / "killed", 0, False
            while run(context, cache, out, arguments.ranks, random.random() * seconds):
                killed += 1
                resumed |= (out / "state.safetensors").exists()
            if not killed:
                shutil.rmtree(out)
                continue
            found = difference(out, whole)
            kills, midway = kills + killed, midway + resumed
            if found <= limit:
                equal += 1
            else:
                most += 1
                print(f"a training killed {killed} times differs by {found:.3g}", file=sys.stderr)
            shutil.rmtree(out)
    print(
        f"{equal} of {arguments.count} trainings ({arguments.ranks} ranks), killed {kills} times in all, {midway} of "
        f"them with a state to go on from, are the one that was not, within {limit:g}"
    )
    sys.exit(equal < arguments.count)


if __name__ == "__main__":
    main()
