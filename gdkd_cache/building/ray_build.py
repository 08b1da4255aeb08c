"""A build on a Ray cluster: teachers are actors, and what they see is rendered by tasks wherever a core is free.

Each teacher is one more process of the build, which claims, encodes and commits as all others do; so those of a
cluster, of torchrun and plain ones build one cache together. Ray places them, starts lost ones again and moves pixels.
"""

import itertools
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from gdkd_cache.building.build import BuildResult, build
from gdkd_cache.building.options import BuildOptions, ClusterOptions
from gdkd_cache.cache.cache import open_cache
from gdkd_cache.data.loader import ViewLoader
from gdkd_cache.data.source import Source
from gdkd_cache.data.views import ViewBatch, ViewRenderer, ViewRequest
from gdkd_cache.errors import GdkdCacheError, UsageError, first_line
from gdkd_cache.models.network import Network
from gdkd_cache.ranks import Rank, stand_as
from gdkd_cache.terminal import log_lines
from gdkd_cache.threads import mapped

Materials = Callable[[], tuple[Source, Network, Source | None]]
"""Opens a build's source, its teacher, and what that is evaluated on besides, in the process that uses them."""

_LAST_SECONDS = 10.0
_RENDERERS: dict[str, ViewRenderer] = {}


def build_on_ray(
    options: BuildOptions, cluster: ClusterOptions, materials: Materials, *, on_gpus: bool = True
) -> BuildResult:
    """Build a cache on a Ray cluster, or go on with one; the bytes are those of `build`.

    Args:
        options: what to build, and where: a place that all nodes see.
        cluster: where to compute.
        materials: called by each teacher; pickled, and so are the images where renderers are others.
        on_gpus: each teacher has a GPU of the cluster, where that has any.

    Raises:
        UsageError: Ray is not installed, or cannot be reached; or teachers leave no core to render.
        GdkdCacheError: a renderer was lost more often than Ray tries again.
        SourceError, ModelError, MismatchError, CacheError, OSError: as `build`.
    """
    ray, start = _ray(), time.monotonic()
    with _joined(ray, cluster.ray):
        found, nodes = ray.cluster_resources(), [node for node in ray.nodes() if node["Alive"]]
        cpus, gpus = int(found.get("CPU", 0)), int(found.get("GPU", 0)) if on_gpus else 0
        teachers = cluster.teachers or gpus or max(cpus // 2, 1)
        spare = cpus - (min(teachers, gpus) or teachers)
        renderers = max(spare, 0) if cluster.renderers is None else cluster.renderers
        if renderers and spare < 1:  # they would wait for each other
            raise UsageError(
                f"the cluster has {cpus} cores, which its teachers take, one each; give fewer --teachers, or "
                "--renderers 0 for them to render"
            )
        kind = ray.remote(num_cpus=1, num_gpus=int(gpus > 0), max_restarts=-1, max_task_retries=-1)(Teacher)
        shared = -(-teachers // len(nodes))
        ranks = [Rank(rank=n, world_size=teachers, local_rank=0, local_world_size=shared) for n in range(teachers)]
        actors = [kind.remote(rank, Path.cwd()) for rank in ranks]
        rendering = TaskRendering(uuid.uuid4().hex, -(-renderers // teachers), asked=cluster.renderers is not None)
        left = [actor.build.remote(options, materials, rendering) for actor in actors]
        done, left = ray.wait(left)  # the first that ends has found the cache complete, or what is wrong
        computed = _got(ray, done[0])
        done, _ = ray.wait(left, num_returns=len(left), timeout=_LAST_SECONDS) if left else ([], [])
        computed += sum(_got(ray, one) for one in done)
    return BuildResult(
        manifest=open_cache(options.out).manifest, rows_computed=computed, seconds=time.monotonic() - start
    )


class Teacher:
    """An actor: one process of the build."""

    def __init__(self, rank: Rank, folder: Path) -> None:
        stand_as(rank)
        _go_to(folder)
        log_lines(logging.WARNING if rank.rank else logging.INFO)

    def build(self, options: BuildOptions, materials: Materials, rendering: "TaskRendering") -> int:
        """How many views it computed."""
        source, teacher, eval_source = materials()
        return build(options, source, teacher, eval_source, render=rendering).rows_computed


class TaskRendering:
    """Renders the requests of one teacher by tasks: so many at once, and at most twice as many finished ones wait.

    Args:
        name: of this run; a process of the cluster keeps one renderer for it, as those of all its teachers are alike.
        tasks: how many at once; 0 for none, and then the teacher's process renders.
        asked: also images that lie in memory are rendered by tasks, which is slower on one machine.
    """

    def __init__(self, name: str, tasks: int, *, asked: bool) -> None:
        self._name, self._tasks, self._asked, self._folder = name, tasks, asked, Path.cwd()

    def __call__(self, renderer: ViewRenderer, requests: Iterable[ViewRequest]) -> Iterator[ViewBatch]:
        if not self._tasks or (renderer.in_memory and not self._asked):
            return ViewLoader(renderer).stream(requests)
        if renderer.source.remote is not None:
            raise UsageError("shards of --stream come and go on one machine; give --local-copy DIR, or --renderers 0")
        ray = _ray()
        task, kept = ray.remote(num_cpus=1)(_render), [ray.put(renderer)]

        def rendered(request: ViewRequest) -> list[ViewBatch]:
            return _got(ray, task.remote(self._name, kept, self._folder, request))

        return itertools.chain.from_iterable(mapped(rendered, requests, self._tasks))


def _render(name: str, kept: list[Any], folder: Path, request: ViewRequest) -> list[ViewBatch]:
    """A task; the renderer comes in a list, as Ray would unpack it each time if it came alone."""
    if name not in _RENDERERS:
        _go_to(folder)
        _RENDERERS[name] = _ray().get(kept[0])
    return _RENDERERS[name][request]


def _go_to(folder: Path) -> None:
    """Relative paths mean what they meant to who began; a machine without that folder has absolute ones."""
    if folder.is_dir():
        os.chdir(folder)


def _ray() -> ModuleType:
    try:
        import ray
    except ImportError:
        raise UsageError("--ray needs Ray, which is not installed: pip install 'gdkd-cache[ray]'") from None
    return ray


@contextmanager
def _joined(ray: ModuleType, address: str | None) -> Iterator[None]:
    """A cluster that runs, or one of this machine for as long as the block; that of the caller's own program stays."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(None if address == "auto" else address, logging_level=logging.ERROR, include_dashboard=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(f"--ray {address}: no cluster answers ({first_line(error)})") from None
    try:
        yield
    finally:
        ray.shutdown()


def _got(ray: ModuleType, reference: Any) -> Any:
    """What came of a task.

    Raises:
        GdkdCacheError, OSError: what it raised; or its process was lost more often than Ray tries again.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, GdkdCacheError | OSError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise GdkdCacheError(f"the cluster lost work that it did not do again: {first_line(error)}") from None
