"""Builds on a Ray cluster of several nodes in this machine: the bytes of the plain build, whoever dies on the way."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from gdkd_cache_cli.main import main
from small import build_small

from gdkd_cache.building.options import BuildOptions, ClusterOptions
from gdkd_cache.building.ray_build import build_on_ray
from gdkd_cache.checking.verify import verify
from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import SourceError, UsageError
from gdkd_cache.models.network import Network

_SMALL: dict[str, Any] = {"codec": "transform", "num_views": 4, "shard_rows": 64, "batch_size": 64}
_COMMAND = ("build", "--data", "digits", "--teacher", "cnn-s", "--device", "cpu", "--views", "1", "--accept-teacher")


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory, digits: ArraySource, teacher: Network) -> str:
    """Of the plain build."""
    return build_small(tmp_path_factory.mktemp("plain") / "a.zarr", digits, teacher, **_SMALL).manifest.digest


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Three nodes of one core each, and this process as their driver."""
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'gdkd-cache[ray]'")
    from ray.cluster_utils import Cluster

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    ray.init(cluster.address, logging_level="ERROR")
    yield ray
    ray.shutdown()
    cluster.shutdown()


class _Mortal(torch.nn.Module):
    """A teacher whose process is killed when it has seen some rows, if a file says so, which goes first."""

    def __init__(self, model: torch.nn.Module, file: Path) -> None:
        super().__init__()
        self.model, self.file, self.rows = model, file, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.rows += len(images)
        if self.rows > 400 and self.file.exists():
            self.file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.model(images)


def _materials(source: ArraySource, teacher: Network) -> Callable[[], tuple[ArraySource, Network, None]]:
    return lambda: (source, teacher, None)


def _options(out: Path) -> BuildOptions:
    return BuildOptions(out=out, num_workers=0, accept_teacher=True, **_SMALL)


@pytest.mark.parametrize("dies", [False, True])
def test_a_cluster_builds_the_same_bytes(
    ray: Any, tmp_path: Path, digits: ArraySource, teacher: Network, digest: str, dies: bool
) -> None:
    """Two teachers, and a renderer on another node; one teacher is killed after it has calibrated."""
    file = tmp_path / "kill"
    file.write_text("") if dies else None
    mortal = replace(teacher, model=_Mortal(teacher.model, file))
    cluster = ClusterOptions(ray="auto", teachers=2, renderers=1)
    result = build_on_ray(_options(tmp_path / "a.zarr"), cluster, _materials(digits, mortal), on_gpus=False)
    assert result.manifest.digest == digest
    assert not file.exists()
    assert result.rows_computed == 4 * 256 or dies  # what the dead one had computed, nobody counts
    assert verify(tmp_path / "a.zarr").problems == ()
    assert {path.name for path in (tmp_path / "a.zarr").iterdir()}.isdisjoint({"claims", "ledger", "build.json"})


def test_what_is_wrong_on_the_cluster_is_told_as_at_home(ray: Any, tmp_path: Path) -> None:
    def fails() -> Any:
        raise SourceError("images are missing")

    with pytest.raises(SourceError, match=r"^images are missing$"):
        build_on_ray(_options(tmp_path / "a.zarr"), ClusterOptions(ray="auto"), fails)


def test_teachers_leave_a_core_to_render(ray: Any, tmp_path: Path) -> None:
    cluster = ClusterOptions(ray="auto", teachers=3, renderers=1)
    with pytest.raises(UsageError, match="the cluster has 3 cores, which its teachers take"):
        build_on_ray(_options(tmp_path / "a.zarr"), cluster, lambda: pytest.fail("nothing is opened"))


def test_only_ray_needs_ray(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, a plain build works, and one on a cluster says what to install."""
    monkeypatch.setitem(sys.modules, "ray", None)
    command = (*_COMMAND, "--weights", str(weights), "--out", str(tmp_path / "a.zarr"))
    refused = CliRunner().invoke(main, (*command, "--ray"))
    assert (refused.exit_code, refused.output.strip()) == (
        2,
        "Error: --ray needs Ray, which is not installed: pip install 'gdkd-cache[ray]'",
    )
    assert not (tmp_path / "a.zarr").exists()
    assert CliRunner().invoke(main, command).exit_code == 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--teachers", "2"), "--teachers goes with --ray"),
        (("--renderers", "0"), "--renderers goes with --ray"),
        (("--ray", "--teachers", "0"), "teachers is 0; it must be at least 1"),
        (("--ray", "local", "--renderers", "-1"), "renderers is -1; it must be at least 0"),
    ],
)
def test_what_is_refused(tmp_path: Path, given: tuple[str, ...], told: str) -> None:
    result = CliRunner().invoke(main, (*_COMMAND, "--out", str(tmp_path / "a.zarr"), *given))
    assert result.exit_code == 2
    assert told in result.output
