"""One cache built by several processes at once: the same bytes, no shard computed twice, whoever dies on the way."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from faulty import FaultyProxy, lose, refuse
from gdkd_cache_cli.main import main
from safetensors.torch import load_file
from small import Counting, build_small, counting, fork
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from gdkd_cache import open_cache
from gdkd_cache.building import compute, cooperate
from gdkd_cache.building.build import BuildResult
from gdkd_cache.checking.verify import verify
from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import MismatchError
from gdkd_cache.models.network import Network
from gdkd_cache.objects.folder import Folder
from gdkd_cache.ranks import this_rank
from gdkd_cache.store import claims
from gdkd_cache.store.claims import Claims
from gdkd_cache.store.facts import UNFITTED, UNMEASURED
from gdkd_cache.store.manifest import Manifest
from gdkd_cache.store.place import Place
from gdkd_cache.store.writer import CacheWriter
from gdkd_cache.threads import one_thread

_BLANK_ROWS = 2  # each build runs its teacher once on so many blank images
_SMALL: dict[str, Any] = {"codec": "transform", "num_views": 6, "shard_rows": 64}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, digits: ArraySource, teacher: Network) -> Manifest:
    """Of the build by one process: six views of four shards."""
    out = tmp_path_factory.mktemp("whole") / "a.zarr"
    return build_small(out, digits, teacher, **_SMALL).manifest


@pytest.fixture(scope="module")
def digest(manifest: Manifest) -> str:
    return manifest.digest


@pytest.fixture(scope="module")
def name(manifest: Manifest) -> str:
    """What its processes call it."""
    return Place("unused", replace(manifest.identity, codec=UNFITTED, fidelity=UNMEASURED)).build


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cooperate, "POLL_SECONDS", 0.05)


class _Slow(Counting):
    """A teacher that leaves the others time, and calls `then` when it has seen so many rows."""

    def __init__(self, model: torch.nn.Module, then: Callable[[], object] = lambda: None, after: int = 0) -> None:
        super().__init__(model)
        self.then, self.after = then, after

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        before = self.rows
        logits = super().forward(images)
        if before < self.after <= self.rows:
            self.then()
        return logits


def _whole(out: Path, digest: str) -> None:
    assert open_cache(out).manifest.digest == digest
    assert verify(out).problems == ()
    # Empty folders may stay where two processes clean at once.
    left = [path.relative_to(out).parts[0] for path in out.rglob("*") if path.is_file()]
    assert not {"claims", "ledger", "build.json"} & set(left)
    assert not list(out.rglob("*.partial"))


def _seen_once(models: Sequence[Counting]) -> None:
    """Each row of six views, and those of view 0 again that another process than the one that calibrates builds."""
    again = sum(model.rows - _BLANK_ROWS for model in models) - 6 * 256
    assert again in range(0, 256 + 1, 64)


@pytest.mark.parametrize("seconds_apart", [0.0, 0.1, 0.2])
def test_racing_builds_share_the_work(
    tmp_path: Path, digits: ArraySource, teacher: Network, digest: str, seconds_apart: float
) -> None:
    """Three at once: one digest, every row of every view is seen by one teacher, and the codec is fitted once."""
    models = [_Slow(teacher.model) for _ in range(3)]

    def run(number: int) -> BuildResult:
        time.sleep(number * seconds_apart)
        return build_small(tmp_path / "a.zarr", digits, replace(teacher, model=models[number]), **_SMALL)

    with ThreadPoolExecutor(3) as executor:
        results = list(executor.map(run, range(3)))
    assert {result.manifest.digest for result in results} == {digest}
    assert sum(result.rows_computed for result in results) == 6 * 256
    _seen_once(models)
    assert sum(result.rows_computed > 0 for result in results) >= 2
    _whole(tmp_path / "a.zarr", digest)


def test_racing_builds_in_an_object_store(
    digits: ArraySource, teacher: Network, digest: str, proxy: FaultyProxy, bucket: str
) -> None:
    """The same over HTTP, where answers are late and some are lost."""
    proxy.delay = 0.01
    proxy.plan = [("PUT .*/claims/.*0.json", lose, 3), ("PUT .*/ledger/", refuse(503, "SlowDown"), 2)]
    models = [_Slow(teacher.model) for _ in range(2)]

    def run(model: _Slow) -> BuildResult:
        return build_small(f"{bucket}/a", digits, replace(teacher, model=model), **_SMALL)

    with ThreadPoolExecutor(2) as executor:
        results = list(executor.map(run, models))
    assert {result.manifest.digest for result in results} == {digest}
    assert sum(result.rows_computed for result in results) == 6 * 256
    _seen_once(models)
    assert verify(f"{bucket}/a").problems == ()


def test_decoded_images_are_shared_by_groups_of_views(tmp_path: Path, digits: ArraySource, teacher: Network) -> None:
    """A source that is no array goes eight views at a time: the views of a group that others hold are left to them."""

    class Decoded:
        keys, classes, digest, labels = digits.keys, digits.classes, digits.digest, digits.labels

        def __len__(self) -> int:
            return len(digits)

        def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
            return digits[row]

    source = Decoded()
    whole = build_small(tmp_path / "a.zarr", source, teacher, num_views=3, shard_rows=64)
    models = [_Slow(teacher.model) for _ in range(2)]
    out = tmp_path / "b.zarr"
    with ThreadPoolExecutor(2) as executor:
        results = list(
            executor.map(
                lambda model: build_small(out, source, replace(teacher, model=model), num_views=3, shard_rows=64),
                models,
            )
        )
    assert {result.manifest.digest for result in results} == {whole.manifest.digest}
    assert sum(result.rows_computed for result in results) == 3 * 256


@pytest.mark.parametrize(
    ("num_ranks", "in_memory", "num_groups"),
    [(1, True, 20), (1, False, 4), (2, False, 4), (4, False, 10), (8, False, 20)],
)
def test_there_is_work_for_all_ranks(num_ranks: int, in_memory: bool, num_groups: int) -> None:
    """Images are decoded once for several views, but not so that some ranks have nothing to do."""

    units = [(view, shard, range(shard * 5, shard * 5 + 5)) for view in range(10) for shard in range(2)]
    groups = compute.grouped(units, in_memory=in_memory, num_ranks=num_ranks)
    assert len(groups) == num_groups
    assert sorted((view, group.shard, group.rows) for group in groups for view in group.views) == sorted(units, key=str)


def test_shards_are_claimed_as_their_rendering_begins(
    tmp_path: Path, digits: ArraySource, teacher: Network, digest: str
) -> None:
    """What a process has not come to is free for others: images in memory are rendered a view at a time."""
    out = tmp_path / "a.zarr"
    held: list[int] = []
    slow = _Slow(teacher.model, lambda: held.append(len(list(out.glob("claims/[0-9]*/*"))) // 4), 256 + _BLANK_ROWS + 1)
    assert build_small(out, digits, replace(teacher, model=slow), **_SMALL).manifest.digest == digest
    assert held in ([1], [2])  # of six views: the one that the teacher sees, and the one that is rendered next


def test_an_interrupted_build_is_taken_over(tmp_path: Path, digits: ArraySource, teacher: Network, digest: str) -> None:
    """One of two stops in the middle: the other does the rest at once, and nothing that was committed again."""
    out = tmp_path / "a.zarr"

    def interrupt() -> None:
        raise KeyboardInterrupt

    models = [_Slow(teacher.model, interrupt, 256 + 400), _Slow(teacher.model)]

    def run(number: int) -> BuildResult | None:
        time.sleep(0.2 * number)  # so that the first one calibrates
        try:
            return build_small(out, digits, replace(teacher, model=models[number]), **_SMALL)
        except KeyboardInterrupt:
            return None

    with ThreadPoolExecutor(2) as executor:
        first, second = executor.map(run, range(2))
    assert first is None
    assert second is not None
    assert 0 < second.rows_computed < 6 * 256
    assert second.rows_computed == models[1].rows - _BLANK_ROWS
    _whole(out, digest)


def _abandon(place: Folder, build: str, work: str, machine: str, process: int) -> None:
    """What a killed process leaves: a claim, and a beat that changes no more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "_machine", lambda: machine)
        patch.setattr(os, "getpid", lambda: process)
        dead = Claims(place, build)
        place.write(f"claims/{build}/beats/{dead._owner}", b"7")
        assert dead.take(work)


def _dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("work", ["codec", "manifest", "2/1"])
@pytest.mark.parametrize("here", [True, False])
def test_work_of_the_dead_is_taken_over(
    tmp_path: Path, digits: ArraySource, teacher: Network, digest: str, monkeypatch: pytest.MonkeyPatch,
    name: str, work: str, here: bool,
) -> None:  # fmt: skip
    """Killed on this machine: at once. On another one: after its beat has not changed for a while."""
    out = tmp_path / "a.zarr"
    if work != "codec":
        with pytest.raises(KeyboardInterrupt):
            build_small(out, digits, counting(teacher, 256 + 64)[0], **_SMALL)
    place = Folder(out)
    place.prepare()
    machine = claims._machine() if here else "another"
    _abandon(place, name, work, machine, _dead_process() if here else os.getpid())
    monkeypatch.setattr(claims, "EXPIRY", 60.0 if here else 0.3)
    start = time.monotonic()
    result = build_small(out, digits, teacher, **_SMALL)
    assert time.monotonic() - start < 30 if here else time.monotonic() - start >= 0.3
    assert result.manifest.digest == digest
    _whole(out, digest)


def test_one_alone_takes_over(tmp_path: Path) -> None:
    place = Folder(tmp_path)
    _abandon(place, "a", "3/1", claims._machine(), _dead_process())
    barrier = threading.Barrier(8)

    def take(turn: int) -> bool:
        with Claims(place, "a") as own:
            barrier.wait()
            taken = own.take("3/1")
            assert own.take("3/1") == taken
            barrier.wait()
            return taken

    with ThreadPoolExecutor(8) as executor:
        for _ in range(5):  # each time the last owner has left
            assert sum(executor.map(take, range(8))) == 1


def test_a_live_owner_keeps_its_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far beyond the time after which silence means death."""
    monkeypatch.setattr(claims, "EXPIRY", 0.6)
    with Claims(Folder(tmp_path), "a") as owner, Claims(Folder(tmp_path), "a") as other:
        assert owner.take("0/0")
        for _ in range(12):
            assert not other.take("0/0")
            time.sleep(0.1)
        owner.check()
        assert other.take("0/1")
    with Claims(Folder(tmp_path), "a") as late:
        assert late.take("0/0")


def test_one_taken_for_dead_commits_no_more(
    tmp_path: Path, digits: ArraySource, teacher: Network, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was stopped for long wakes up when another has finished the cache: it leaves that alone."""
    out = tmp_path / "a.zarr"
    monkeypatch.setattr(Claims, "_keep_beating", lambda self: None)
    monkeypatch.setattr(claims, "EXPIRY", 0.5)
    finished = threading.Event()
    sleeper = replace(teacher, model=_Slow(teacher.model, finished.wait, 256 + 64 * 3))
    with ThreadPoolExecutor(1) as executor:
        sleeping = executor.submit(build_small, out, digits, sleeper, **_SMALL)
        while len(list(out.glob("ledger/*/*.json"))) < 1:
            time.sleep(0.01)
        build_small(out, digits, teacher, **_SMALL)
        before = {name: (out / name).stat().st_mtime_ns for name in Folder(out).sizes()}
        finished.set()
        assert sleeping.result().manifest.digest == digest
    assert {name: (out / name).stat().st_mtime_ns for name in Folder(out).sizes()} == before
    _whole(out, digest)


def test_foreign_claims_count_for_nothing(
    tmp_path: Path, digits: ArraySource, teacher: Network, digest: str, name: str
) -> None:
    place = Folder(tmp_path / "a.zarr")
    place.prepare()
    claimed = [b"", b"{}", b"\x00" * 5000, b'{"machine":"m","owner":"../../x","process":1}',
               b'{"machine":"m","owner":"%s","process":-1}' % (b"0" * 32)]  # fmt: skip
    for attempt, claim in enumerate(claimed):  # each stands before the next
        for work in ("codec", "0/0", "manifest"):
            place.write(f"claims/{name}/{work}/{attempt}.json", claim)
    build_small(tmp_path / "a.zarr", digits, teacher, **_SMALL)
    _whole(tmp_path / "a.zarr", digest)


def test_another_build_is_refused_before_the_first_has_begun(
    tmp_path: Path, digits: ArraySource, teacher: Network, digest: str
) -> None:
    """Both calibrate at once; the one that is later is told of the other."""
    first = replace(teacher, model=_Slow(teacher.model, lambda: time.sleep(0.3), 100))
    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(build_small, tmp_path / "a.zarr", digits, first, **_SMALL)
        while not list((tmp_path / "a.zarr").glob("claims/*/codec")):
            time.sleep(0.01)
        late = replace(teacher, model=_Slow(teacher.model, lambda: time.sleep(0.6), 100))
        with pytest.raises(MismatchError, match=r"another build began here meanwhile: views.seed is 0 there, 1 asked"):
            build_small(tmp_path / "a.zarr", digits, late, seed=1, **_SMALL)
        assert running.result().manifest.digest == digest
    _whole(tmp_path / "a.zarr", digest)


def test_what_was_committed_meanwhile_is_left(
    tmp_path: Path, digits: ArraySource, teacher: Network, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the ledger and the claim, the owner of a shard committed it and left."""
    out = tmp_path / "a.zarr"
    with pytest.raises(KeyboardInterrupt):
        build_small(out, digits, counting(teacher, 256 + 64 * 6)[0], **_SMALL)
    committed = len(list(out.glob("ledger/*/*.json")))
    assert 0 < committed < 24
    recorded, looks = CacheWriter.recorded, iter(range(1))
    monkeypatch.setattr(
        CacheWriter, "recorded", lambda writer: recorded(writer) if next(looks, None) is None else set()
    )
    monkeypatch.setattr(cooperate, "_LOOK_SECONDS", float("inf"))
    assert build_small(out, digits, teacher, **_SMALL).rows_computed == (24 - committed) * 64
    _whole(out, digest)


def test_shards_damaged_by_others_are_built_again(
    tmp_path: Path, digits: ArraySource, teacher: Network, digest: str
) -> None:
    """What another process committed is read again before it is published."""
    out = tmp_path / "a.zarr"
    with pytest.raises(KeyboardInterrupt):
        build_small(out, digits, counting(teacher, 256 + 64 * 6)[0], **_SMALL)
    path = next(out.glob("packed/c/0/0/*"))
    path.write_bytes(bytes(path.stat().st_size))
    committed = len(list(out.glob("ledger/*/*.json")))
    assert build_small(out, digits, teacher, **_SMALL).rows_computed == (24 - committed + 1) * 64
    _whole(out, digest)


def _arguments(weights: Path, views: int, out: Path) -> list[str | Path]:
    teacher = ["--teacher", "cnn-s", "--weights", weights, "--device", "cpu"]
    options = ["--codec", "transform", "--batch-size", "16", "--views", str(views), "--out", out]
    return ["build", "--accept-teacher", "--data", "digits", *teacher, *options]


def _alone(weights: Path, views: int, out: Path) -> str:
    """The digest of a build by this process."""
    with one_thread():  # batches are small
        result = CliRunner().invoke(main, list(map(str, _arguments(weights, views, out))))
    assert result.exit_code == 0, result.output
    return open_cache(out).manifest.digest


def _launch(tmp_path: Path, *arguments: str | Path, restarts: int = 0) -> BaseProcess:
    """Run a command in two ranks, by what torchrun calls; they are forks, in which torch is imported already."""

    def run() -> None:
        result = CliRunner().invoke(main, list(map(str, arguments)))
        (tmp_path / f"said-{os.getpid()}").write_text(result.output)
        assert result.exit_code == 0, result.output

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, max_restarts=restarts, start_method="fork", rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", run_id="x", monitor_interval=0.1,
    )  # fmt: skip
    return fork(lambda: elastic_launch(config, run)())


def _said(tmp_path: Path, process: BaseProcess) -> str:
    """What all ranks printed, once they have ended well."""
    process.join(200)
    said = "".join(path.read_text() for path in tmp_path.glob("said-*"))
    assert process.exitcode == 0, said
    return said


def test_ranks_build_one_cache(tmp_path: Path, weights: Path) -> None:
    """Two ranks build what one process builds; the first speaks for both, and clears the place."""
    digest = _alone(weights, 4, tmp_path / "a")
    _alone(weights, 1, tmp_path / "b")
    process = _launch(tmp_path, *_arguments(weights, 4, tmp_path / "b"), "--force")
    assert _said(tmp_path, process).count("    digest  sha256:") == 1
    _whole(tmp_path / "b", digest)


def test_torchrun(tmp_path: Path, weights: Path) -> None:
    """The README's command: the ranks are processes of the command line, of which the first speaks."""
    digest = _alone(weights, 2, tmp_path / "a")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    command += [sys.executable, "-c", "from gdkd_cache_cli.main import main; main()"]
    command += map(str, _arguments(weights, 2, tmp_path / "b"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("    digest  sha256:") == 1
    _whole(tmp_path / "b", digest)


def test_a_killed_rank_comes_back(tmp_path: Path, weights: Path) -> None:
    """torchrun starts the ranks anew when one is killed; they go on where they were, and the first speaks for both."""
    digest = _alone(weights, 20, tmp_path / "a")
    out = tmp_path / "b"
    process = _launch(tmp_path, *_arguments(weights, 20, out), restarts=1)
    while len(list(out.glob("ledger/*/*.json"))) < 2:
        time.sleep(0.005)
        assert process.is_alive()
    views = [path.parent.name for path in out.glob("ledger/*/0.json")]
    committed = {path: path.stat().st_mtime_ns for view in views for path in out.glob(f"*/c/{view}/0/0")}
    claim = json.loads(next(out.glob("claims/*/*/0/0.json")).read_bytes())
    os.kill(claim["process"], signal.SIGKILL)
    assert _said(tmp_path, process).count(" digest  sha256:") == 1
    assert len(committed) >= 2
    assert {path: path.stat().st_mtime_ns for path in committed} == committed
    _whole(out, digest)


def _metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_ranks_train_one_network(tmp_path: Path, weights: Path) -> None:
    """With all images in each step, two ranks take the steps of one process, and evaluate on the same images."""
    _alone(weights, 2, tmp_path / "a.zarr")
    command = ["train", "--loss", "gdkd", "--data", "digits", "--cache", str(tmp_path / "a.zarr"), "--device", "cpu",
               "--student", "small:linear_student", "--batch-size", "1438", "--epochs", "3", "--lr", "0.5"]  # fmt: skip
    result = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "one")])
    assert result.exit_code == 0, result.output
    process = _launch(tmp_path, *command, "--out", tmp_path / "two")
    assert _said(tmp_path, process).count("best accuracy") == 1
    assert len(_metrics(tmp_path / "two")) == 3
    for alone, together in zip(_metrics(tmp_path / "one"), _metrics(tmp_path / "two"), strict=True):
        assert alone.keys() == together.keys()
        for name in alone.keys() - {"images_per_second", "memory_bytes", "gradients"}:
            assert together[name] == pytest.approx(alone[name], rel=1e-4)
        for name, quantiles in alone["gradients"].items():  # each rank's are of its own images, then the mean is taken
            assert together["gradients"][name] == pytest.approx(quantiles, rel=0.2), name
    trained, together = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    for name, value in trained.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-6)


def test_ranks_agree_on_batch_statistics(tmp_path: Path) -> None:
    """What was evaluated, half by each rank, is the network that the first one saved."""
    command = ["train", "--loss", "ce", "--data", "digits", "--student", "resnet8", "--epochs", "1", "--device", "cpu"]
    _said(tmp_path, _launch(tmp_path, *command, "--out", tmp_path / "a"))
    weights = str(tmp_path / "a/last.safetensors")
    result = CliRunner().invoke(main, ["eval", "--data", "digits", "--weights", weights, "--device", "cpu", "--json"])
    assert json.loads(result.output)["loss"] == pytest.approx(_metrics(tmp_path / "a")[0]["eval_loss"], rel=1e-5)


def test_ranks_are_torchruns_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other launchers set RANK too, for processes that know nothing of each other."""
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert (this_rank().rank, this_rank().world_size) == (0, 1)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert (this_rank().rank, this_rank().world_size, this_rank().local_rank) == (3, 4, 1)
