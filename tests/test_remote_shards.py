"""Image shards in an object store: the images of a folder, of which few lie on disk, over a line that fails."""

import gc
import os
import pickle
import re
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from faulty import SECRET, Fault, FaultyProxy, cut, drop, lose, opaque_etag, refuse, web_server
from gdkd_cache_cli.main import main
from hypothesis import given, settings
from hypothesis import strategies as st
from small import put_files, write_shards
from torch import Tensor

from gdkd_cache import open_cache, open_source
from gdkd_cache.cache.cache import Cache
from gdkd_cache.cache.dataset import TeacherBatch
from gdkd_cache.data import order
from gdkd_cache.data.order import epoch_requests
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.shards import ahead
from gdkd_cache.data.shards.ahead import ShardsAhead
from gdkd_cache.data.shards.remote import RemoteShardSource
from gdkd_cache.data.shards.source import ShardSource
from gdkd_cache.data.source import ArraySource, EncodedSource, Source
from gdkd_cache.data.targets import ClassTargets
from gdkd_cache.data.views import ViewRenderer, ViewRequest
from gdkd_cache.errors import SourceError, StoreError, UsageError

_COUNT, _ROWS = 16, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digits: ArraySource) -> Path:
    """The digits in 16 shards of 16; not to be changed."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, digits, [_ROWS] * _COUNT)
    return folder


@pytest.fixture(scope="session")
def short_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For sockets, whose paths may have a hundred characters; of processes that live as long as these tests."""
    return tmp_path_factory.mktemp("s")


@pytest.fixture
def url(
    folder: Path, bucket: str, proxy: FaultyProxy, tmp_path: Path, short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """The same in a bucket; temporary folders are in `tmp`, and a pass looks two shards ahead."""
    put_files(bucket, "data", {path.name: path.read_bytes() for path in folder.iterdir()})
    temporary = tempfile.mkdtemp(dir=short_folder)
    (tmp_path / "tmp").symlink_to(temporary)
    monkeypatch.setattr(tempfile, "tempdir", temporary)
    for module in (order, ahead):
        monkeypatch.setattr(module, "BUFFER_ROWS", 30)
    monkeypatch.setattr(ahead, "AHEAD_SHARDS", 2)
    proxy.requests.clear()
    return f"wds:{bucket}/data/Train-{{0..{_COUNT - 1}}}.tar"


def _local(folder: Path) -> str:
    return f"wds:{folder}/Train-{{0..{_COUNT - 1}}}.tar"


def _streamed(spec: str, **options: Any) -> ShardSource:
    source = open_source(spec, stream=True, **options)
    assert isinstance(source, ShardSource)
    return source


def _folders(tmp_path: Path) -> list[Path]:
    gc.collect()
    return list(tmp_path.glob("tmp/gdkd-cache-*"))


def _there(tmp_path: Path) -> set[str]:
    """The shards that lie in temporary folders, whole or not."""
    return {path.parent.name for path in tmp_path.glob("tmp/gdkd-cache-*/*/*")}


def _samples(cache: Cache, images: Tensor, labels: Tensor, said: TeacherBatch) -> list[tuple[str, int, bytes, bytes]]:
    """Key, label, pixels and logits of every image of a batch."""
    batch = zip(said.rows.tolist(), labels, images, said.logits, strict=True)
    return [
        (cache.keys[row], int(label), image.numpy().tobytes(), logits.numpy().tobytes())
        for row, label, image, logits in batch
    ]


_ASKED: dict[str, Any] = {"batch_size": 16, "shuffle": True, "normalize": None}


def _epoch(cache: Cache, source: Source, epoch: int) -> list[tuple[str, int, bytes, bytes]]:
    return [sample for batch in cache.dataset(source).loader(epoch, **_ASKED) for sample in _samples(cache, *batch)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_remote_pass_is_a_local_one(
    tmp_path: Path, folder: Path, url: str, proxy: FaultyProxy, digits_cache: Path, workers: int
) -> None:
    """To the bit and in order; each shard comes once a pass; nothing lies on disk but what the pass needs by then."""
    cache, local, remote = open_cache(digits_cache), _streamed(_local(folder)), _streamed(url)
    assert isinstance(remote, RemoteShardSource)
    assert (remote.digest, remote.keys, remote.classes) == (local.digest, local.keys, local.classes)
    assert not _there(tmp_path)
    data = cache.dataset(remote)
    for epoch in range(2):
        expected = _epoch(cache, local, epoch)
        proxy.requests.clear()
        requests = epoch_requests(remote, 0, epoch=epoch, batch_size=16)
        needs = [{str(row // _ROWS) for row in request.rows.tolist()} for request in requests]
        kept = _there(tmp_path)  # the one that was wanted last
        found, most = [], 0
        for number, batch in enumerate(data.loader(epoch, num_workers=workers, **_ASKED)):
            out = number + 1 + 2 * workers  # what was given out, and what is known beyond it
            begun, left = set[str]().union(*needs[:out]), set[str]().union(*needs[number + 1 : out + 3])
            there = _there(tmp_path) - kept
            assert len(there) <= len(begun & left) + ahead.AHEAD_SHARDS
            most = max(most, len(there))
            found += _samples(cache, *batch)
        assert found == expected
        assert ahead.AHEAD_SHARDS < most < (8 if workers == 0 else 12)
        fetched = Counter(proxy.sent("GET .*tar"))
        assert max(fetched.values()) == 1
        assert _COUNT - 1 <= len(fetched) <= _COUNT
        assert _there(tmp_path) == kept
    del data, remote
    assert not _folders(tmp_path)


def test_an_abandoned_pass_leaves_nothing(tmp_path: Path, url: str, digits_cache: Path, folder: Path) -> None:
    """And the next one is whole, with the same workers."""
    cache, remote = open_cache(digits_cache), _streamed(url)
    data = cache.dataset(remote)
    for _ in zip(range(3), data.loader(0, num_workers=1, **_ASKED), strict=False):
        pass
    found = [sample for batch in data.loader(1, num_workers=1, **_ASKED) for sample in _samples(cache, *batch)]
    assert found == _epoch(cache, _streamed(_local(folder)), 1)
    assert len(_there(tmp_path)) <= 1


def test_in_memory(tmp_path: Path, folder: Path, url: str, proxy: FaultyProxy) -> None:
    local, remote = open_source(_local(folder)), open_source(url)
    assert isinstance(local, EncodedSource)
    assert isinstance(remote, EncodedSource)
    assert remote.digest == local.digest
    assert remote.files == local.files
    assert set(Counter(proxy.sent("GET .*tar")).values()) == {1}
    assert len(proxy.sent("GET .*tar")) == _COUNT
    assert not _folders(tmp_path)


def test_a_web_server(tmp_path: Path, folder: Path, digits_cache: Path) -> None:
    """A plain one, which gives no ETags and no ranges."""
    cache = open_cache(digits_cache)
    expected = _epoch(cache, _streamed(_local(folder)), 0)
    with web_server(folder.parent) as server:
        url = f"wds:{server}/{folder.name}/Train-{{0..{_COUNT - 1}}}.tar"
        assert _epoch(cache, _streamed(url), 0) == expected
        for _ in range(2):
            assert _epoch(cache, _streamed(url, local_copy=tmp_path), 0) == expected
    assert len(list(tmp_path.rglob("*.tar"))) == _COUNT


def test_images_outside_a_pass(tmp_path: Path, folder: Path, url: str) -> None:
    local, remote = _streamed(_local(folder)), _streamed(url)
    for row in (3, 250, 251, 100, 3):
        assert np.array_equal(remote[row][0], local[row][0])
        assert _there(tmp_path) == {str(row // _ROWS)}
    sent = pickle.dumps(remote)  # what workers get: no store, and what lies there
    assert b"remote" not in sent.replace(str(tmp_path).encode(), b"")
    assert np.array_equal(pickle.loads(sent)[3][0], local[3][0])


def test_a_local_copy_is_used_the_second_time(
    tmp_path: Path, folder: Path, url: str, bucket: str, proxy: FaultyProxy, digits_cache: Path
) -> None:
    cache, kept = open_cache(digits_cache), tmp_path / "kept"
    expected = _epoch(cache, _streamed(_local(folder)), 0)

    def fetched(read: bool = False, **options: Any) -> list[str]:
        proxy.requests.clear()
        source = open_source(url, local_copy=kept, **options)
        if read:
            assert _epoch(cache, source, 0) == expected
        assert not _folders(tmp_path)
        return sorted(request.rpartition("/")[2] for request in proxy.sent("GET .*tar"))

    assert len(fetched(read=True, stream=True)) == _COUNT
    assert fetched(read=True, stream=True) == fetched() == []
    copies = {path.name: path for path in kept.rglob("*.tar")}
    assert len(copies) == _COUNT
    whole = copies["Train-7.tar"].read_bytes()
    for name, damage in (
        ("Train-7.tar", whole[:-1]),
        ("Train-7.tar", whole[:700] + bytes([whole[700] ^ 1]) + whole[701:]),
        ("Train-7.tar.json", b"{\xff"),
    ):
        (copies["Train-7.tar"].parent / name).write_bytes(damage)
        assert fetched(read=True, stream=True) == ["Train-7.tar"]
        assert fetched(stream=True) == []
    put_files(bucket, "data", {"Train-7.tar": copies["Train-6.tar"].read_bytes()})
    with pytest.raises(SourceError, match="occurs more than once"):
        fetched(stream=True)
    put_files(bucket, "data", {"Train-7.tar": whole})
    assert fetched(stream=True) == []  # it still lies there


@pytest.mark.parametrize("etags", [True, False])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_changed_shard_is_refused(
    url: str, bucket: str, folder: Path, proxy: FaultyProxy, digits_cache: Path, workers: int, etags: bool
) -> None:
    """Of the same size, and even with an ETag that does not tell."""
    if not etags:
        proxy.plan = [("GET .*tar", opaque_etag, 10**6)]
    cache, source = open_cache(digits_cache), _streamed(url)
    data = cache.dataset(source)
    whole = (folder / "Train-11.tar").read_bytes()
    put_files(bucket, "data", {"Train-11.tar": whole[:-1] + b"?"})
    for _ in range(2):  # it is no passing fault
        with pytest.raises(SourceError, match=r"s3://.*/Train-11\.tar is not what it was when it was opened"):
            list(data.loader(0, num_workers=workers, **_ASKED))
    with pytest.raises(SourceError, match="is not what it was"):
        source[11 * _ROWS]
    put_files(bucket, "data", {"Train-11.tar": whole})
    assert len(list(data.loader(0, num_workers=workers, **_ASKED))) == 16
    if etags:  # another one, for the same bytes
        _ = source[0]
        proxy.plan = [(r"GET .*Train-11\.tar", opaque_etag, 1)]
        with pytest.raises(SourceError, match="is not what it was"):
            list(data.loader(0, num_workers=workers, **_ASKED))


@pytest.mark.parametrize(
    "fault",
    [refuse(500, "InternalError"), refuse(503, "SlowDown"), drop, lose, cut],
    ids=["500", "503", "drop", "lose", "cut"],
)
def test_a_bad_line(
    tmp_path: Path, folder: Path, url: str, proxy: FaultyProxy, digits_cache: Path, fault: Fault
) -> None:
    cache = open_cache(digits_cache)
    proxy.plan = [
        ("GET .*tar", fault, 6),
        ("GET .*classes", fault, 1),
        ("HEAD", fault if fault is not cut else drop, 6),
    ]
    _streamed(url, local_copy=tmp_path / "kept")
    assert not any(times for _, _, times in proxy.plan)
    proxy.plan = [("GET .*tar", fault, 6)]
    source = _streamed(url)
    proxy.plan = [("GET .*tar", fault, 6)]
    assert _epoch(cache, source, 0) == _epoch(cache, _streamed(_local(folder)), 0)
    assert not any(times for _, _, times in proxy.plan)


@pytest.mark.parametrize(
    ("fault", "said"),
    [(refuse(503, "SlowDown"), r"Train-5\.tar: the store is throttling"),
     (refuse(403, "AccessDenied"), r"5\.tar: permission denied \(403"), (cut, r"Train-5\.tar: .*connection broke"),
     (refuse(404, "NoSuchKey"), r"Train-5\.tar does not exist")],
    ids=["503", "403", "cut", "404"],
)  # fmt: skip
def test_a_dead_line(tmp_path: Path, url: str, proxy: FaultyProxy, fault: Fault, said: str) -> None:
    """One line without credentials, and nothing that looks whole."""
    source = _streamed(url)
    proxy.plan = [(r"(GET|HEAD) .*Train-5\.tar", fault, 1000)]
    told = []
    for opened in (
        lambda: open_source(url),
        lambda: _streamed(url),
        lambda: _streamed(url, local_copy=tmp_path / "kept"),
        lambda: source[5 * _ROWS],
    ):
        with pytest.raises((SourceError, StoreError), match=said) as caught:
            opened()
        told.append(str(caught.value))
    assert not any("\n" in text or SECRET in text for text in told)
    assert not list(tmp_path.glob("**/*Train-5.tar*"))
    del source, opened, caught
    assert not _folders(tmp_path)


def test_a_damaged_shard_is_named_by_its_url(url: str, bucket: str, folder: Path) -> None:
    put_files(bucket, "data", {"Train-9.tar": (folder / "Train-9.tar").read_bytes()[:700]})
    for stream in (False, True):
        with pytest.raises(SourceError, match=rf"wds: {bucket}/data/Train-9\.tar is no intact tar file"):
            open_source(url, stream=stream)


class _Liar(BaseHTTPRequestHandler):
    """Says that its shard is a petabyte."""

    def do_GET(self) -> None:
        found = self.path.endswith(".tar")
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(10**15 if found else 0))
        self.end_headers()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_lie_about_a_size_fills_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with HTTPServer(("127.0.0.1", 0), _Liar) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with pytest.raises(SourceError, match=r"has 1,000,000,000,000,000 bytes, .* has room for"):
            open_source(f"wds:http://127.0.0.1:{server.server_port}/a.tar")
        server.shutdown()
    assert not list(tmp_path.iterdir())


def test_what_is_refused(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for spec, said in (
        ("wds:s3://b/data/Train-*.tar", "is no file's name"),
        ("wds:s3://b/data/..", "is no file's name"),
        ("wds:s3://b", "is no file's name"),
        (f"wds:https://h/a.tar?token=a/{SECRET}", "without user"),
        (f"wds:s3://me:{SECRET}@b/{{0,1}}.tar", "without user"),
        ("wds:http://example.org/a.tar", "for this machine only"),
    ):
        with pytest.raises(UsageError, match=re.escape(said)) as caught:
            open_source(spec)
        assert SECRET not in str(caught.value)
    with pytest.raises(UsageError, match="digits takes no --local-copy"):
        open_source("digits", local_copy=tmp_path)
    with pytest.raises(UsageError, match="for wds shards in an object store"):
        open_source(f"wds:{tmp_path}/a.tar", local_copy=tmp_path)
    (tmp_path / "mix.toml").write_text("steps = []\n[mix]\nmixup_alpha = 0.8\n")
    mixed, rows = open_recipe(str(tmp_path / "mix.toml"), 8, 8), np.arange(9)
    with pytest.raises(UsageError, match="give --local-copy DIR"):
        ViewRenderer(_streamed(url), mixed, 0)
    targets = ViewRenderer(_streamed(url, local_copy=tmp_path), mixed, 0)[ViewRequest((0,), rows)][0].targets
    assert isinstance(targets, ClassTargets)
    assert targets.shares is not None
    source = _streamed(url)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(StoreError, match=r"Train-0\.tar: used in a forked process"):
        source[0]
    monkeypatch.undo()


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    batches=st.lists(st.lists(st.integers(0, 10**6), min_size=1, max_size=6), max_size=30),
    out=st.integers(1, 5),
)
def test_any_order_of_requests(sizes: list[int], batches: list[list[int]], out: int) -> None:
    """Whatever rows are asked for, and however many requests are out: shards are there in time, and go in the end."""
    starts = np.cumsum([0, *sizes])
    requests = [ViewRequest((0,), np.array(rows) % starts[-1]) for rows in batches]
    holds: Counter[int] = Counter()
    drawn = 0

    def drawing() -> Any:
        nonlocal drawn
        for drawn, request in enumerate(requests, 1):  # noqa: B007
            yield request

    class Held:
        def hold(self, shard: int) -> Future[None]:
            assert not holds[shard]
            holds[shard] += 1
            future: Future[None] = Future()
            future.set_result(None)
            return future

        def release(self, shard: int) -> None:
            holds[shard] -= 1

    def shards_of(some: list[ViewRequest]) -> set[int]:
        return {int(np.searchsorted(starts, row, side="right")) - 1 for request in some for row in request.rows}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ahead, "BUFFER_ROWS", 10)
        patch.setattr(ahead, "AHEAD_SHARDS", 2)
        walk = ShardsAhead(drawing(), starts, Held())
        waiting: list[ViewRequest] = []
        given_out: list[ViewRequest] = []
        for request in walk:
            waiting.append(request)
            given_out.append(request)
            there = {shard for shard, count in holds.items() if count}
            assert shards_of(waiting) <= there
            assert len(there - shards_of(given_out)) <= 2
            assert sum(len(one.rows) for one in requests[len(given_out) : drawn - 1]) < 10
            if len(waiting) == out:
                walk.received()
                waiting.pop(0)
        assert [id(request) for request in given_out] == [id(request) for request in requests]
        for _ in waiting:
            walk.received()
        assert not +holds


def test_the_command_line(
    tmp_path: Path, url: str, folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Build in memory and streamed, verify, train with workers, evaluate: from the bucket as from the folder."""

    def run(line: str) -> str:
        result = CliRunner().invoke(main, line.format(tmp=tmp_path, url=url, local=_local(folder)).split())
        assert result.exit_code == 0, result.output
        return result.output

    teacher = f"--teacher cnn-s --weights {weights} --accept-teacher"
    build = f"build {teacher} --views 2 --codec topk --device cpu --workers 0 --out {{tmp}}"
    run(f"{build}/local.zarr --data {{local}}")
    run(f"{build}/memory.zarr --data {{url}}")
    run(f"{build}/streamed.zarr --data {{url}} --stream")
    assert len({open_cache(tmp_path / f"{name}.zarr").manifest.digest for name in ("local", "memory", "streamed")}) == 1
    run("verify {tmp}/local.zarr --data {url}")
    run("convert {tmp}/local.zarr {tmp}/sidecars --data {url}")
    assert len(list((tmp_path / "sidecars").glob("Train-*.logits.tar"))) == _COUNT
    run("show {tmp}/local.zarr --data {url} --out {tmp}/views.png")
    train = "train --loss gdkd:k=2 --cache {tmp}/local.zarr --student cnn-s --epochs 1 --device cpu"
    run(f"{train} --data {{local}} --eval-data {{local}} --stream --workers 0 --out {{tmp}}/a")
    run(f"{train} --data {{url}} --eval-data {{url}} --stream --workers 0 --out {{tmp}}/b --local-copy {{tmp}}/kept")
    assert not _folders(tmp_path)
    # In a process of its own, with workers, to its end.
    monkeypatch.setenv("TMPDIR", str((tmp_path / "tmp").resolve()))
    line = f"{train} --data {{url}} --eval-data {{local}} --stream --workers 1 --out {{tmp}}/c"
    code = "import sys; from gdkd_cache_cli.main import main; main(sys.argv[1:])"
    arguments = line.format(tmp=tmp_path, url=url, local=_local(folder)).split()
    ended = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert not _folders(tmp_path)
    run("eval --data {url} --stream --weights {tmp}/b/last.safetensors --workers 0")
    learned = {name: (tmp_path / name / "last.safetensors").read_bytes() for name in "abc"}
    assert learned["a"] == learned["b"]
    refused = CliRunner().invoke(main, f"build --data digits --local-copy x {build[6:]}/x".format(tmp=tmp_path).split())
    assert (refused.exit_code, "digits takes no --local-copy" in refused.output) == (2, True)
