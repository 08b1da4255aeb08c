#!/usr/bin/env python
"""Damage caches at random, in many ways: `verify` must find every damage, and training take no step with it.

    python scripts/corrupt_caches.py --count 1000 --seed 0

Each time one cache of 256 images of scikit-learn's digits (or of --data; two views in four shards each) is copied and
damaged once. `verify` must report a problem or refuse the cache; and when `train` runs both views, it must stop before
the first step that the damage could reach: at once for what all views share, else at the damaged view. Metadata and
files that no manifest lists are never read by training. Exits with 1 when anything was missed.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from gdkd_cache import open_cache
from gdkd_cache.building.build import build
from gdkd_cache.building.options import BuildOptions
from gdkd_cache.checking.verify import verify
from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import GdkdCacheError
from gdkd_cache.models.opening import open_network
from gdkd_cache.training.train import TrainOptions, train

sys.path.insert(0, str(Path(__file__).parent))
from kill_builds import first_rows, save_teacher

ROWS, BATCH_SIZE = 256, 64
STEPS_PER_EPOCH = ROWS // BATCH_SIZE
Damage = Callable[[random.Random, Path, Path], str]
"""Damages the cache (second argument), maybe with parts of another of the same shape; gives the damaged file's name."""


def _files(cache: Path) -> list[str]:
    return sorted(path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file())


def _shards(cache: Path) -> list[str]:
    return [name for name in _files(cache) if "/c/" in name and name.count("/") > 2]


def flip_a_bit(rng: random.Random, cache: Path, other: Path) -> str:
    name = rng.choice(_files(cache))
    data = bytearray((cache / name).read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    (cache / name).write_bytes(data)
    return name


def truncate(rng: random.Random, cache: Path, other: Path) -> str:
    name = rng.choice(_files(cache))
    data = (cache / name).read_bytes()
    (cache / name).write_bytes(data[: rng.randrange(1, len(data))])
    return name


def empty(rng: random.Random, cache: Path, other: Path) -> str:
    name = rng.choice(_files(cache))
    (cache / name).write_bytes(b"")
    return name


def delete(rng: random.Random, cache: Path, other: Path) -> str:
    name = rng.choice(_files(cache))
    (cache / name).unlink()
    return name


def swap_two_shards(rng: random.Random, cache: Path, other: Path) -> str:
    while True:
        a, b = rng.sample(_shards(cache), 2)
        first, second = (cache / a).read_bytes(), (cache / b).read_bytes()
        if first != second:
            (cache / a).write_bytes(second)
            (cache / b).write_bytes(first)
            return min(a, b, key=lambda name: most_steps(name) or 0)


def take_anothers_shard(rng: random.Random, cache: Path, other: Path) -> str:
    while True:
        name = rng.choice(_shards(cache))
        if (other / name).read_bytes() != (cache / name).read_bytes():
            shutil.copy(other / name, cache / name)
            return name


def leave_a_ledger_record(rng: random.Random, cache: Path, other: Path) -> str:
    name = f"ledger/{rng.randrange(2)}/{rng.randrange(4)}.json"
    (cache / name).parent.mkdir(parents=True)
    (cache / name).write_text(json.dumps({"build": "sha256:0", "objects": {rng.choice(_shards(cache)): [1, "0" * 64]}}))
    return name


def leave_a_build_json(rng: random.Random, cache: Path, other: Path) -> str:
    shutil.copy(rng.choice((cache, other)) / "manifest.json", cache / "build.json")
    return "build.json"


def edit_the_manifest(rng: random.Random, cache: Path, other: Path) -> str:
    path = cache / "manifest.json"
    data = path.read_bytes()
    stored = json.loads(data)
    name = rng.choice(sorted(stored["objects"]))
    stored["objects"][name][0] += rng.choice((-1, 1))
    views = json.loads(data)
    views["identity"]["views"]["seed"] += 1
    less = json.loads(data)
    del less["objects"][name]
    edits = [json.dumps(edited, sort_keys=True, separators=(",", ":")).encode() for edited in (stored, views, less)]
    path.write_bytes(rng.choice(edits))
    return "manifest.json"


def add_white_space(rng: random.Random, cache: Path, other: Path) -> str:
    path = cache / "manifest.json"
    data = path.read_bytes()
    places = [0, len(data), *(i + 1 for i, byte in enumerate(data) if byte in b",:{[")]
    at = rng.choice(places)
    path.write_bytes(data[:at] + rng.choice((b" ", b"\n", b"\t")) + data[at:])
    return "manifest.json"


DAMAGES: tuple[Damage, ...] = (
    flip_a_bit, truncate, empty, delete, swap_two_shards, take_anothers_shard, leave_a_ledger_record,
    leave_a_build_json, edit_the_manifest, add_white_space,
)  # fmt: skip


def most_steps(name: str) -> int | None:
    """How many steps may be taken before damage to a file is met; None when training does not read it."""
    shared = ("keys/c/", "labels/c/", "tables/c/", "source_probe/c/", "source_check/c/")
    if name == "manifest.json" or name.startswith(shared):
        return 0
    if "/c/" in name:
        return int(name.split("/")[2]) * STEPS_PER_EPOCH
    return None


def is_found(cache: Path) -> bool:
    """Whether `verify` finds the damage."""
    try:
        return bool(verify(cache).problems)
    except GdkdCacheError:
        return True


def steps_taken(cache: Path, source: ArraySource, out: Path) -> int:
    """Steps of a student that trains on both views until it is stopped."""
    steps = 0

    def count(optimizer: Optimizer, *_: object) -> None:
        nonlocal steps
        # An optimizer is tried on one weight before a training; a network has more.
        steps += len(optimizer.param_groups[0]["params"]) > 1

    options = TrainOptions(
        out=out,
        student="cnn-s",
        epochs=2,
        batch_size=BATCH_SIZE,
        loss="gdkd:k=5,w2=2",
        device="cpu",
        num_workers=0,
        force=True,
    )
    hook = register_optimizer_step_post_hook(count)
    try:
        train(options, source, source, cache=open_cache(cache))
    except GdkdCacheError:
        pass
    finally:
        hook.remove()
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="how many damages")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", default="digits", help="small images, such as wds:PATTERN")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    source = first_rows(arguments.data, ROWS)
    done, found, stopped = Counter[str](), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        caches = [Path(folder) / "whole.zarr", Path(folder) / "other.zarr"]
        for seed, cache in enumerate(caches):
            weights = Path(folder) / f"{seed}.safetensors"
            save_teacher(weights, source, seed)
            teacher = open_network("cnn-s", weights, len(source.classes), device="cpu")
            build(
                BuildOptions(out=cache, num_views=2, codec="transform:step=0.5", shard_rows=64, accept_teacher=True),
                source,
                teacher,
            )
        if is_found(caches[0]) or steps_taken(caches[0], source, Path(folder) / "out") != 2 * STEPS_PER_EPOCH:
            raise SystemExit("the undamaged cache does not train")
        damaged = Path(folder) / "damaged.zarr"
        for number in range(arguments.count):
            damage = DAMAGES[number % len(DAMAGES)]
            shutil.copytree(caches[0], damaged)
            name = damage(rng, damaged, caches[1])
            done[damage.__name__] += 1
            found[damage.__name__] += is_found(damaged)
            steps, most = steps_taken(damaged, source, Path(folder) / "out"), most_steps(name)
            stopped[damage.__name__] += steps == (2 * STEPS_PER_EPOCH if most is None else most)
            shutil.rmtree(damaged)
            print(f"\r{number + 1} of {arguments.count}", end="", file=sys.stderr)
    print()
    for name, count in done.items():
        print(f"{name.replace('_', ' '):>24}: {found[name]} of {count} found, {stopped[name]} trained no step with it")
    print(f"{'all':>24}: {found.total()} of {done.total()} found, {stopped.total()} trained no step with it")
    raise SystemExit(not found.total() == stopped.total() == done.total())


if __name__ == "__main__":
    main()
