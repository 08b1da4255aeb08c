#!/usr/bin/env python
"""Kill a node, a process or the driver of builds on a Ray cluster at random instants; every digest must be the same.

    python scripts/kill_ray_builds.py --count 20 --seed 0
    python scripts/kill_ray_builds.py --count 20 --data imagefolder:tiles --recipe imagenet:size=64

The cluster is three nodes on this machine, two of one core each beside the driver's, with two teachers or a teacher
and a renderer. Builds are of two views (of the first 512 images that --data names) in shards of 64 rows, with an
untrained cnn-s as teacher. What is killed (SIGKILL) is in turn a process of a node, a teacher or a renderer; a node,
and another one joins; and the driver. A command that fails is run again. Exits with 1 when a digest differs from the
plain build's.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
from kill_builds import save_untrained

from gdkd_cache import open_cache, open_source
from gdkd_cache.building.build import build
from gdkd_cache.building.options import BuildOptions, ClusterOptions
from gdkd_cache.building.ray_build import build_on_ray
from gdkd_cache.data.views import image_size
from gdkd_cache.models.opening import open_network

KINDS = ("process", "node", "driver")
ROWS = 512


def build_some(address: str | None, cluster: dict[str, int], data: str, recipe: str, out: Path, weights: Path) -> None:
    """Build a cache, or go on with it, on a cluster or, without an address, plainly."""

    def materials() -> Any:
        source = open_source(data)
        source = source.take(np.arange(min(ROWS, len(source))))
        return source, open_network("cnn-s", weights, len(source.classes), device="cpu"), None

    options = BuildOptions(
        out=out, num_views=2, recipe=recipe, batch_size=64, num_workers=0, shard_rows=64, accept_teacher=True
    )
    if address is None:
        build(options, *materials())
    else:
        build_on_ray(options, ClusterOptions(ray=address, **cluster), materials, on_gpus=False)


def kill_one_of(cluster: Any) -> bool:
    """Kill a teacher or a renderer of a node, if there is one."""
    raylets = [node.all_processes["raylet"][0].process.pid for node in cluster.worker_nodes]
    children = [pid for raylet in raylets for pid in Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()]
    names = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
    working = [pid for pid, name in names.items() if name.startswith((b"ray::Teacher", b"ray::_render"))]
    if working:
        os.kill(random.choice(working), signal.SIGKILL)
    return bool(working)


def kill(kind: str, cluster: Any, driver: BaseProcess) -> bool:
    """Kill something; whether there was such a thing."""
    if not driver.is_alive():
        return False
    if kind == "driver":
        driver.kill()
    elif kind == "process":
        while driver.is_alive() and not kill_one_of(cluster):  # there is none yet
            time.sleep(0.1)
        return driver.is_alive()
    else:
        cluster.remove_node(random.choice(list(cluster.worker_nodes)), allow_graceful=False)
        complete(cluster)
    return True


def complete(cluster: Any) -> None:
    """Have two nodes of one core each beside the driver's; on a busy machine, some fail to start."""
    for node in list(cluster.worker_nodes):
        if not node.any_processes_alive() or node.dead_processes():
            cluster.remove_node(node, allow_graceful=False)
    while len(cluster.worker_nodes) < 2:
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20, help="how many builds to hurt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", default="digits", help="images")
    parser.add_argument("--recipe", default="crop-flip")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gdkd_cache.building.ray_build", "gdkd_cache.models.opening"])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    with tempfile.TemporaryDirectory() as folder:
        weights, out = Path(folder) / "teacher.safetensors", Path(folder) / "cache.zarr"
        source = open_source(arguments.data)
        save_untrained(weights, len(source.classes), image_size(source))

        def started(address: str | None, numbers: dict[str, int]) -> BaseProcess:
            given = (address, numbers, arguments.data, arguments.recipe, out, weights)
            process = context.Process(target=build_some, args=given)
            process.start()
            return process

        started(None, {}).join()
        expected = open_cache(out).manifest.digest
        shutil.rmtree(out)
        hurt = equal = ended = 0
        seconds = 0.0  # of a build on the cluster that nobody hurts, which is the first one
        while hurt < arguments.count:
            complete(cluster)
            kind = KINDS[hurt % len(KINDS)]
            numbers = random.choice([{"teachers": 2}, {"teachers": 1, "renderers": 1}])
            start, driver = time.monotonic(), started(cluster.address, numbers)
            driver.join(random.random() * seconds if seconds else None)
            killed = kill(kind, cluster, driver) if seconds else False
            driver.join()
            seconds = seconds or time.monotonic() - start
            if driver.exitcode:  # killed itself; or begun when a node was missing, and refused
                complete(cluster)
                again = started(cluster.address, numbers)
                again.join()
                if again.exitcode:
                    raise SystemExit(f"a build that was run again ended with {again.exitcode}")
            cache = open_cache(out)
            right = cache.manifest.digest == expected and not any(problem for _, problem in cache.problems())
            if not killed and not right:
                raise SystemExit("a build on the cluster is another one than the plain build")
            hurt, equal, ended = hurt + killed, equal + (killed and right), ended + (killed and not driver.exitcode)
            print(f"{hurt} hurt, {equal} digests equal ({kind}, {numbers}, {killed})", file=sys.stderr)
            shutil.rmtree(out)
    cluster.shutdown()
    print(f"{ended} of {hurt} builds went on by themselves, the others were run again")
    print(f"{equal} of {hurt} digests equal the plain build's")
    raise SystemExit(equal != hurt)


if __name__ == "__main__":
    main()
