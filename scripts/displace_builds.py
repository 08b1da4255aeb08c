#!/usr/bin/env python
"""Run two builds of one place at once, stopped and woken at random instants (SIGSTOP, SIGCONT), and check what is left.

    python scripts/displace_builds.py --count 50 --seed 0

Each trial begins a build in one process and, a while later, another in a second one: of another seed with --force, or
the same build once more. Each is stopped and woken a few times, also for longer than it takes the other to finish.
Whatever happens: one of them ends with 0, and then the place holds a whole cache with the digest of an undisturbed
build; of a build that took the place with --force and ended with 0, it holds that one's. Exits with 1 otherwise.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from kill_builds import CODECS, ROWS, first_rows, save_teacher

from gdkd_cache import open_cache
from gdkd_cache.building.build import build
from gdkd_cache.building.options import BuildOptions
from gdkd_cache.errors import GdkdCacheError
from gdkd_cache.models.opening import open_network
from gdkd_cache.store import claims

DISPLACED = 3
EXPIRY = 2.0  # so that one that is stopped is also taken for dead


def build_one(out: Path, weights: Path, codec: str, seed: int, force: bool) -> None:
    """A build of two views, which ends with `DISPLACED` where it is refused."""
    claims.EXPIRY = EXPIRY
    source = first_rows("digits", ROWS)
    teacher = open_network("cnn-s", weights, len(source.classes), device="cpu")
    options = BuildOptions(
        out=out,
        num_views=2,
        codec=codec,
        batch_size=32,
        num_workers=0,
        shard_rows=ROWS // 8,
        seed=seed,
        force=force,
        accept_teacher=True,
    )
    try:
        build(options, source, teacher)
    except GdkdCacheError as error:
        print(f"  {error}", file=sys.stderr)
        raise SystemExit(DISPLACED) from None


def disturb(process: BaseProcess, seconds: float, seed: int) -> None:
    """Stop and wake a process a few times, at instants within what a build takes."""
    instants = random.Random(seed)
    for _ in range(instants.randrange(4)):
        for sent, pause in ((signal.SIGSTOP, seconds), (signal.SIGCONT, seconds * instants.choice((0.2, 2.0)))):
            time.sleep(instants.random() * pause)
            if process.is_alive():
                assert process.pid is not None
                os.kill(process.pid, sent)
    if process.is_alive():
        assert process.pid is not None
        os.kill(process.pid, signal.SIGCONT)


def run(context: ForkServerContext, builds: list[tuple[Path, Path, str, int, bool]], seconds: float) -> list[int]:
    """Exit codes of builds that begin one after the other, each disturbed."""
    processes = [context.Process(target=build_one, args=one) for one in builds]
    threads = []
    for process in processes:
        process.start()
        threads.append(threading.Thread(target=disturb, args=(process, seconds, random.randrange(2**32))))
        threads[-1].start()
        time.sleep(random.random() * seconds)
    for one in (*threads, *processes):
        one.join()
    return [-1 if process.exitcode is None else process.exitcode for process in processes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50, help="how many trials")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gdkd_cache.building.build", "gdkd_cache.models.opening", "sklearn.datasets"])
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "teacher.safetensors"
        save_teacher(weights, first_rows("digits", ROWS))
        expected, seconds = {}, {}
        for codec in CODECS:
            for seed in (0, 1):
                start, whole = time.monotonic(), Path(folder) / f"{codec}-{seed}.zarr"
                process = context.Process(target=build_one, args=(whole, weights, codec, seed, False))
                process.start()
                process.join()
                seconds[codec] = time.monotonic() - start
                expected[codec, seed] = open_cache(whole).manifest.digest
        ends: Counter[str] = Counter()
        bad = 0
        for trial in range(arguments.count):
            codec, out, forced = random.choice(CODECS), Path(folder) / "place.zarr", random.random() < 2 / 3
            builds = [(out, weights, codec, 0, False), (out, weights, codec, int(forced), forced)]
            codes = run(context, builds, seconds[codec])
            ends[f"{'--force' if forced else 'plain'} {codes}"] += 1
            allowed = {expected[codec, seed] for (*_, seed, _), code in zip(builds, codes, strict=True) if code == 0}
            if forced and codes[1] == 0:
                allowed = {expected[codec, 1]}
            bad += set(codes) > {0, DISPLACED} or 0 not in codes or not _holds(out, allowed)
            print(f"\r{trial + 1} trials, {bad} bad", end="", file=sys.stderr)
            shutil.rmtree(out, ignore_errors=True)
    print()
    for end, count in sorted(ends.items()):
        print(f"{count:4} {end}")
    print(f"{arguments.count - bad} of {arguments.count} places hold a whole cache of a build that ended with 0")
    raise SystemExit(bad > 0)


def _holds(out: Path, digests: set[str]) -> bool:
    """Whether a place holds a whole cache of one of these digests."""
    try:
        cache = open_cache(out)
        problems = [problem for _, problem in cache.problems() if problem is not None]
    except GdkdCacheError as error:
        problems = [str(error)]
    else:
        if cache.manifest.digest not in digests:
            problems.append(f"{cache.manifest.digest} is not what was built")
    for problem in problems:
        print(f"  BAD {problem}", file=sys.stderr)
    return not problems


if __name__ == "__main__":
    main()
