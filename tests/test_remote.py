"""Caches in object stores: what holds in a folder holds over HTTP that fails, lies, breaks and is killed."""

import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from faulty import SECRET, Fault, FaultyProxy, cut, drop, flip, hold, lose, opaque_etag, refuse, web_server
from gdkd_cache_cli.main import main
from PIL import Image
from safetensors.torch import load_file
from small import build_small, put_files, write_shards
from torch import Tensor, nn

import gdkd_cache as gc
from gdkd_cache import Cache, open_cache
from gdkd_cache.checking.verify import verify
from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import CacheError, MismatchError, StoreError, UsageError
from gdkd_cache.models.network import Network
from gdkd_cache.objects.bucket import Bucket
from gdkd_cache.objects.folder import Folder
from gdkd_cache.objects.objects import Objects, WritableObjects, open_objects, open_writable
from gdkd_cache.objects.record import ObjectRecord
from gdkd_cache.objects.remote import WebServer
from gdkd_cache.sharing.copy import copy
from gdkd_cache.store.layout import SOURCE_CHECK
from gdkd_cache.store.manifest import BUILD_NAME, MANIFEST_NAME
from gdkd_cache.store.place import Begun, Complete, Empty, Place
from gdkd_cache.training.train import TrainOptions, train

_SLOW_DOWN = refuse(503, "SlowDown")
_ERROR_500 = refuse(500, "InternalError")


def _run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def _contents(location: str | Path) -> dict[str, bytes]:
    objects = open_objects(location)
    return {name: objects.read(name, size) for name, size in objects.sizes().items()}


class _Stopping(nn.Module):
    """A teacher that is interrupted after some rows."""

    def __init__(self, model: nn.Module, rows: int) -> None:
        super().__init__()
        self.model, self.rows = model, rows

    def forward(self, images: Tensor) -> Tensor:
        self.rows -= len(images)
        if self.rows < 0:
            raise KeyboardInterrupt
        return self.model(images)


def test_build(tmp_path: Path, digits: ArraySource, teacher: Network, proxy: FaultyProxy, bucket: str) -> None:
    """Interrupted, resumed, over a bad line: the same objects as in a folder, no committed shard computed again."""
    out = f"{bucket}/a/digits.zarr"
    proxy.plan = [("PUT .*/c/", _ERROR_500, 2), ("PUT .*ledger", _SLOW_DOWN, 1), ("PUT .*build.json", lose, 1)]
    with pytest.raises(KeyboardInterrupt):
        build_small(out, digits, replace(teacher, model=_Stopping(teacher.model, 256 + 200)), shard_rows=128)
    with pytest.raises(CacheError, match="unfinished build"):
        open_cache(out)
    proxy.plan = [("GET .*ledger", drop, 1), ("PUT .*manifest.json", lose, 1)]
    result = build_small(out, digits, teacher, shard_rows=128)
    assert 0 < result.rows_computed < 512
    build_small(tmp_path / "b.zarr", digits, teacher, shard_rows=128)
    assert _contents(out) == _contents(tmp_path / "b.zarr")
    assert build_small(out, digits, teacher, shard_rows=128).rows_computed == 0
    with pytest.raises(MismatchError, match=r"views\.seed is 0 there, 1 asked"):
        build_small(out, digits, teacher, shard_rows=128, seed=1)
    forced = build_small(out, digits, teacher, shard_rows=256, force=True)
    assert forced.manifest.objects.keys() | {MANIFEST_NAME} == open_objects(out).sizes().keys()
    assert verify(out, source=digits).problems == ()


def test_push_and_pull(tmp_path: Path, digits_cache: Path, proxy: FaultyProxy, bucket: str) -> None:
    digest = open_cache(digits_cache).manifest.digest
    there, back = f"{bucket}/deep/er", tmp_path / "back.zarr"
    result = _run("push", digits_cache, there, "--digest", digest)
    assert result.exit_code == 0, result.output
    assert digest in result.stdout
    assert _run("pull", f"{there}/", back).exit_code == 0
    assert _contents(back) == _contents(there) == _contents(digits_cache)
    facts = _run("inspect", there)
    assert facts.exit_code == 0
    assert digest in facts.stdout
    assert _run("verify", there, "--data", "digits").exit_code == 1  # a cache of 256 digits
    assert _run("verify", there).exit_code == 0
    proxy.requests.clear()
    assert copy(digits_cache, there).num_sent == copy(there, back).num_sent == copy(there, digits_cache).num_sent == 0
    assert not proxy.sent("^PUT")
    assert {request.rpartition("/")[2] for request in proxy.sent("^GET .*deep/er/")} == {MANIFEST_NAME}


def test_the_first_views(tmp_path: Path, digits: ArraySource, teacher: Network, bucket: str) -> None:
    """A part is the cache that a build of fewer views makes, to the byte."""
    whole = build_small(tmp_path / "a.zarr", digits, teacher, num_views=3).manifest.digest
    result = _run("push", tmp_path / "a.zarr", f"{bucket}/part", "--views", "0-1")
    assert result.exit_code == 0, result.output
    part = build_small(tmp_path / "b.zarr", digits, teacher, num_views=2).manifest.digest
    assert _contents(f"{bucket}/part") == _contents(tmp_path / "b.zarr")
    assert part in result.stdout
    assert f"views 0 to 1 of {whole}" in result.stdout
    assert _run("pull", f"{bucket}/part", tmp_path / "c.zarr", "--views", "0-1", "--digest", part).exit_code == 0
    for views, code, said in (
        ("0-2", 2, "views 0 to 1"),
        ("1-0", 2, "views 0 to 1"),
        ("2", 2, "views 0 to 1"),
        ("0-", 2, "must be the first and the last"),
    ):
        refused = _run("pull", f"{bucket}/part", tmp_path / "d.zarr", "--views", views)
        assert refused.exit_code == code
        assert said in refused.stderr
    with pytest.raises(MismatchError, match="holds another cache"):
        copy(tmp_path / "a.zarr", f"{bucket}/part")
    assert not (tmp_path / "d.zarr").exists()


def test_merge(tmp_path: Path, digits_cache: Path, proxy: FaultyProxy, bucket: str) -> None:
    """Parts in a folder and in a bucket, into a bucket, over a line that fails."""
    digest = open_cache(digits_cache).manifest.digest
    copy(digits_cache, tmp_path / "a.zarr", views=range(1))
    copy(digits_cache, f"{bucket}/b", views=range(1, 2))
    proxy.plan = [(kind, _ERROR_500, 2) for kind in ("GET .*/b/.*/c/", "PUT .*/all/.*/c/")]
    result = _run("merge", f"{bucket}/b", tmp_path / "a.zarr", "--out", f"{bucket}/all")
    assert result.exit_code == 0, result.output
    assert digest in result.stdout
    assert _contents(f"{bucket}/all") == _contents(digits_cache)
    assert not any(times for _, _, times in proxy.plan)


@pytest.mark.parametrize("fault", [_ERROR_500, _SLOW_DOWN, drop, lose, cut], ids=["500", "503", "drop", "lose", "cut"])
def test_a_bad_line(tmp_path: Path, digits_cache: Path, proxy: FaultyProxy, bucket: str, fault: Fault) -> None:
    """Every kind of request fails twice, and the copies are whole."""
    kinds = ["GET .*/x/.*/c/", "GET .*/x/.*json"]
    if fault is not cut:  # obstore asks again for the rest of an object, but not of a list; others have no body
        kinds += ["GET .*list-type", "HEAD .*json", "PUT .*/c/", "PUT .*json"]
    proxy.plan = [(kind, fault, 2) for kind in kinds]
    copy(digits_cache, f"{bucket}/x")
    copy(f"{bucket}/x", tmp_path / "back.zarr")
    assert _contents(tmp_path / "back.zarr") == _contents(f"{bucket}/x") == _contents(digits_cache)
    assert not any(times for _, _, times in proxy.plan)


@pytest.mark.parametrize(
    ("fault", "said"),
    [(_SLOW_DOWN, r"throttling or overloaded \(503"),
     (refuse(403, "AccessDenied"), r"permission denied \(403"), (drop, "the connection broke"),
     (refuse(301, "PermanentRedirect"), r"check bucket, region and endpoint")],
    ids=["503", "403", "drop", "301"],
)  # fmt: skip
def test_a_dead_line(
    tmp_path: Path, digits_cache: Path, proxy: FaultyProxy, bucket: str, fault: Fault, said: str
) -> None:
    """One line that names the URL and what to do; nothing looks whole."""
    copy(digits_cache, f"{bucket}/x")
    for method, args in (
        ("HEAD", ("inspect", f"{bucket}/x")),
        ("GET .*/c/", ("verify", f"{bucket}/x")),
        ("GET .*/c/", ("pull", f"{bucket}/x", tmp_path / "back")),
        ("GET .*list-type", ("push", digits_cache, f"{bucket}/y")),
        ("PUT .*/y/", ("push", digits_cache, f"{bucket}/y")),
    ):
        proxy.plan = [(method, fault, 1000)]
        result = _run(*args)
        assert result.exit_code == 1
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
        assert re.search(said, line)
        assert line.startswith(f"Error: {bucket}/")
    proxy.plan.clear()
    for place in (f"{bucket}/y", tmp_path / "back"):
        with pytest.raises(CacheError, match=r"is no cache|is an unfinished"):
            open_cache(place)


_PUSH = """
from gdkd_cache.sharing.copy import copy
copy({source!r}, {there!r})
"""


def test_a_killed_push(digits_cache: Path, proxy: FaultyProxy, bucket: str) -> None:
    """SIGKILL in the middle: it never looks whole, and only what is missing is sent again."""
    there, release = f"{bucket}/x", threading.Event()
    proxy.plan = [("PUT .*/x/labels", hold(release), 100), ("PUT .*/x/logits/c/1", hold(release), 100)]
    script = _PUSH.format(source=str(digits_cache), there=there)
    names = open_cache(digits_cache).manifest.objects.keys()
    held = {name for name in names if name.startswith(("labels", "logits/c/1"))}
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        deadline = time.monotonic() + 30
        while len(open_objects(there).sizes()) < len(names - held) + 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    release.set()
    assert open_objects(there).sizes().keys() == names - held | {BUILD_NAME}
    with pytest.raises(CacheError, match="unfinished build or copy"):
        open_cache(there)
    proxy.plan.clear()
    proxy.requests.clear()
    assert copy(digits_cache, there).num_sent == len(held)
    prefix = f"PUT /{there.removeprefix('s3://')}/"
    assert {request.removeprefix(prefix) for request in proxy.sent("^PUT")} == held | {BUILD_NAME, MANIFEST_NAME}
    assert _contents(there) == _contents(digits_cache)


def test_an_interrupted_pull(tmp_path: Path, digits_cache: Path, proxy: FaultyProxy, bucket: str) -> None:
    """What lies there already is hashed and not fetched; what was damaged meanwhile is fetched again."""
    there, back = f"{bucket}/x", tmp_path / "back.zarr"
    copy(digits_cache, there)
    proxy.plan = [("GET .*/x/logits/c/1", refuse(403, "AccessDenied"), 100)]
    with pytest.raises(StoreError, match=r"logits/c/1/0/0: permission denied \(403 AccessDenied\)"):
        copy(there, back)
    with pytest.raises(CacheError, match="unfinished build or copy"):
        open_cache(back)
    with pytest.raises(MismatchError, match="holds another unfinished build or copy"):
        copy(there, back, views=range(1))
    proxy.plan.clear()
    copy(there, back)
    whole = (back / "probe/c/0/0/0").read_bytes()
    (back / "probe/c/0/0/0").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (back / MANIFEST_NAME).unlink()
    with pytest.raises(CacheError, match="not empty and holds no cache"):  # nothing says that this was a copy
        copy(there, back)
    shutil.copy(digits_cache / MANIFEST_NAME, back)
    proxy.requests.clear()
    assert copy(there, back).num_sent == 1
    assert len(proxy.sent("^GET")) == 2  # the manifest and the damaged object
    assert _contents(back) == _contents(digits_cache)


def test_damage_is_not_copied(tmp_path: Path, digits_cache: Path, bucket: str) -> None:
    source = Path(shutil.copytree(digits_cache, tmp_path / "copy.zarr"))
    data = bytearray((source / "logits/c/1/0/0").read_bytes())
    data[9] ^= 1
    (source / "logits/c/1/0/0").write_bytes(data)
    for destination in (f"{bucket}/x", tmp_path / "back.zarr"):
        with pytest.raises(CacheError, match="logits/c/1/0/0: its checksum is not the manifest's"):
            copy(source, destination)
        assert not {MANIFEST_NAME, "logits/c/1/0/0"} & open_objects(destination).sizes().keys()


@pytest.mark.parametrize("size", [10, 5 * 2**20, 11 * 2**20])
def test_a_write_that_arrives_damaged_is_refused(proxy: FaultyProxy, bucket: str, size: int) -> None:
    """In one part or several; and what is whole is not read back, because the store's own MD5 is compared."""
    objects, data = Bucket(bucket), np.random.default_rng(0).bytes(size)
    objects.write("a", data)
    assert not proxy.sent("^GET")
    assert objects.read("a", size) == data
    proxy.plan = [("^PUT", flip, 1)]
    with pytest.raises(StoreError, match="/a: the store held something else than was sent"):
        objects.write("a", data)
    proxy.plan = [("^PUT", flip, 1)]
    with pytest.raises(StoreError, match="/b: the store held something else"):
        objects.create("b", data)
    assert objects.sizes() == {}  # no later run takes it for whole
    assert objects.create("b", data)


def test_a_store_without_md5_is_read_back(proxy: FaultyProxy, bucket: str) -> None:
    """As Azure's, whose ETags say nothing about the content."""
    proxy.plan = [("^(PUT|HEAD)", opaque_etag, 100)]
    objects = Bucket(bucket)
    objects.write("a", b"data")
    assert objects.create("b", b"data")
    assert len(proxy.sent("^GET")) == 2
    assert objects.holds("a", ObjectRecord.of(b"data"), lambda: b"data")
    assert not objects.holds("a", ObjectRecord.of(b"tada"), lambda: b"tada")


def test_a_damaged_shard_is_not_committed(
    digits: ArraySource, teacher: Network, proxy: FaultyProxy, bucket: str
) -> None:
    proxy.plan = [("PUT .*/classes/c/1/", flip, 1)]
    with pytest.raises(StoreError, match="classes/c/1/0/0: the store held something else"):
        build_small(f"{bucket}/x", digits, teacher)
    assert "ledger/1/0.json" not in open_objects(f"{bucket}/x").sizes()
    proxy.plan = [("PUT .*/manifest.json", flip, 1)]
    with pytest.raises(StoreError, match=r"manifest\.json: the store held something else"):
        build_small(f"{bucket}/x", digits, teacher)
    assert build_small(f"{bucket}/x", digits, teacher).rows_computed == 0
    assert verify(f"{bucket}/x").problems == ()


@pytest.mark.parametrize("remote", [True, False])
def test_two_racing_writers(tmp_path: Path, proxy: FaultyProxy, bucket: str, remote: bool) -> None:
    """Of several that publish different things at once exactly one succeeds, and all who publish the same."""
    place = bucket if remote else tmp_path
    proxy.delay = 0.02
    proxy.plan = [("PUT .*/x3", lose, 1)]
    data = [b"%d" % (writer // 2) for writer in range(6)]
    with ThreadPoolExecutor(6) as executor:
        for turn in range(5):
            name = f"x{turn}"
            published = list(executor.map(partial(open_writable(place).create, name), data))
            standing = open_objects(place).read(name, 10)
            assert published == [content == standing for content in data]


@pytest.mark.parametrize("remote", [True, False])
def test_two_builds_in_one_place(tmp_path: Path, digits_cache: Path, bucket: str, remote: bool) -> None:
    """Both saw an empty place: another build is refused at the start, another outcome of the same one at the end."""
    place, cache = f"{bucket}/x" if remote else tmp_path / "x", open_cache(digits_cache)
    identity = cache.manifest.identity
    assert identity.views is not None
    other = replace(identity, views=replace(identity.views, seed=1))
    places = [Place(place, each) for each in (identity, identity, other)]
    assert [each.look() for each in places] == [Empty()] * 3
    first, same = (each.begin(Begun(cache.codec, identity.fidelity, identity.examination)) for each in places[:2])
    with pytest.raises(MismatchError, match="another build began here meanwhile"):
        places[2].begin(Begun(cache.codec, identity.fidelity, identity.examination))
    checks = cache.source_checks()
    assert checks is not None
    for view in (0, 1):
        columns = {name: cache.column(name, view) for name in cache.layouts} | {SOURCE_CHECK: checks}
        for writer in (first, same):
            writer.commit(view, 0, columns)
    probes = cache.source_probes()
    published = first.finish(cache.keys, cache.labels, probes)
    assert same.finish(cache.keys, cache.labels, probes) == published
    with pytest.raises(MismatchError, match="has published another outcome of this build here meanwhile"):
        same.finish(cache.keys, cache.labels[::-1], probes)
    assert places[1].look() == Complete(published)
    places[1].clean(Complete(published))
    assert open_cache(place).manifest == published
    assert verify(place).problems == ()


def test_views_are_read_at_once(digits_cache: Path, proxy: FaultyProxy, bucket: str) -> None:
    copy(digits_cache, f"{bucket}/x")
    cache = open_cache(f"{bucket}/x")
    _ = cache.labels
    proxy.delay, proxy.most_at_once = 0.1, 0
    assert torch.equal(cache.view(1).logits(range(256)), open_cache(digits_cache).view(1).logits(range(256)))
    assert proxy.most_at_once > 1


def test_training_from_a_bucket(
    tmp_path: Path, digits: ArraySource, digits_test: ArraySource, digits_cache: Path, proxy: FaultyProxy, bucket: str
) -> None:
    """The same weights as from a folder, with workers; a second training reads the local copy, less what is damaged."""
    there, kept = f"{bucket}/x", tmp_path / "kept"
    copy(digits_cache, there)

    def weights(name: str, cache: Cache, num_workers: int = 0) -> dict[str, Tensor]:
        options = TrainOptions(out=tmp_path / name, student="cnn-s", epochs=3, loss="gdkd", num_workers=num_workers)
        train(options, digits, digits_test, cache=cache)
        return load_file(tmp_path / name / "last.safetensors")

    local = weights("local", open_cache(digits_cache))
    proxy.plan = [("GET .*/c/", _SLOW_DOWN, 2), ("GET .*/c/", cut, 2)]
    remote = weights("remote", open_cache(there, local_copy=kept), num_workers=2)
    assert all(torch.equal(remote[name], value) for name, value in local.items())
    records = open_cache(there).manifest.objects
    read = {name for name in records if "/c/" in name}
    assert {path.name for path in kept.rglob("*") if path.is_file()} == {records[name].sha256 for name in read}
    for name, damage in (("logits/c/0/0/0", lambda data: data[:-1] + b"?"), ("logits/c/1/0/0", lambda data: data[:9])):
        path = kept / records[name].sha256[:2] / records[name].sha256
        path.write_bytes(damage(path.read_bytes()))
    proxy.requests.clear()
    again = weights("again", open_cache(there, local_copy=kept))
    assert all(torch.equal(again[name], value) for name, value in local.items())
    fetched = sorted(request.split("/x/")[1] for request in proxy.sent("^GET"))
    assert fetched == ["logits/c/0/0/0", "logits/c/1/0/0", MANIFEST_NAME]
    command = "train --loss gdkd --data digits --student cnn-s --epochs 1 --out s --cache"
    assert f"is not in {there}" in _run(*command.split(), there, "--local-copy", kept).stderr  # a cache of 256 digits


def test_damage_in_a_bucket(digits_cache: Path, bucket: str) -> None:
    """Flipped, cut, longer, empty, missing, unlisted: `verify` names it, and reading refuses it."""
    copy(digits_cache, f"{bucket}/x")
    objects, name = open_writable(f"{bucket}/x"), "logits/c/1/0/0"
    whole = objects.read(name, 10**6)
    for damage in (b"?" + whole[1:], whole[:-1], whole + b"?", b"", None):
        objects.delete([name])
        if damage is not None:
            objects.write(name, damage)
        (problem,) = verify(f"{bucket}/x").problems
        assert name in problem
        with pytest.raises(CacheError, match=name):
            open_cache(f"{bucket}/x").view(1)
    assert copy(digits_cache, f"{bucket}/x").num_sent == 1  # a push repairs
    objects.write("logits/extra", b"x")
    (problem,) = verify(f"{bucket}/x").problems
    assert "logits/extra is not listed" in problem


def test_reads_are_bounded(tmp_path: Path, bucket: str) -> None:
    objects = Bucket(bucket)
    objects.write("a", bytes(3000))
    assert [len(objects.read("a", limit)) for limit in (0, 10, 2999, 3000, 3001)] == [1, 11, 3000, 3000, 3000]
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(200 * 2**20)
    with web_server(tmp_path) as url:
        tracemalloc.start()
        assert len(WebServer(url).read("huge", 10)) == 11
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 50 * 2**20


def test_objects_of_both_kinds(tmp_path: Path, proxy: FaultyProxy, bucket: str) -> None:
    """One protocol, one behaviour."""
    assert proxy.forward("PUT", f"/{bucket.removeprefix('s3://')}/x/", b"", {}).status == 200  # as a console does
    for objects in (Folder(tmp_path / "x"), Bucket(f"{bucket}/x")):
        assert isinstance(objects, WritableObjects)
        assert objects.sizes() == {}
        objects.prepare()
        for name in ("b/c/0", "b/c/1", "bc", "a.json"):
            objects.write(name, name.encode())
        objects.write("bc", b"other")
        assert objects.sizes() == {"a.json": 6, "b/c/0": 5, "b/c/1": 5, "bc": 5}
        assert (objects.size("b/c/0"), objects.size("b/c"), objects.size("z")) == (5, None, None)
        assert objects.create("bc", b"other")
        assert not objects.create("bc", b"another")
        with pytest.raises(CacheError, match="z is missing"):
            objects.read("z", 9)
        objects.delete(["b/c/0", "b/c/1", "z", "y/z", "a.json"])
        assert objects.sizes() == {"bc": 5}
        assert not (tmp_path / "x" / "b").exists()
        for name in ("", "/etc/passwd", "../x", "a/../b", ".hidden", "a//b", "a/", "a\n", "a?b"):
            for act in (objects.size, objects.stamp, partial(objects.read, limit=1), partial(objects.write, data=b"")):
                with pytest.raises(CacheError, match="is not an object name"):
                    act(name)
            with pytest.raises(CacheError, match="is not an object name"):
                objects.delete(["bc", name])
        assert objects.sizes() == {"bc": 5}


def test_aweb_server(tmp_path: Path, digits_cache: Path) -> None:
    """A plain one, with no ranges and no lists: read everything, write nothing."""
    with web_server(digits_cache.parent) as server:
        url = f"{server}/{digits_cache.name}"
        assert torch.equal(open_cache(url).view(1).logits([5]), open_cache(digits_cache).view(1).logits([5]))
        assert verify(url).problems == ()
        objects = open_objects(url)
        assert isinstance(objects, Objects)
        assert not isinstance(objects, WritableObjects)
        assert open_objects(url.replace("http", "HTTP")).location == objects.location == url
        with pytest.raises(UsageError, match=rf"^{url}: a web server is read-only; write to a folder, s3://"):
            open_writable(url)
        copy(url, tmp_path / "back.zarr")
        assert _contents(tmp_path / "back.zarr") == _contents(digits_cache)
        with pytest.raises(UsageError, match="a web server is read-only"):
            copy(digits_cache, f"{server}/other")
        with pytest.raises(CacheError, match="is no cache"):
            open_cache(f"{server}/other")


@pytest.mark.parametrize(
    ("url", "said"),
    [("ftp://h/x", "no place for a cache"), (f"https://me:{SECRET}@h/x", "credentials go in the environment"),
     (f"s3://{SECRET}@b/x", "credentials go in"), (f"https://h/x?token={SECRET}", "credentials go in"),
     (f"az://c/x?sv=1&sig={SECRET}#f", "credentials go in"), ("http://example.org/x", "for this machine only"),
     ("s3://", "names no bucket"), ("https:///x", "names no")],
)  # fmt: skip
def test_urls_that_are_refused(url: str, said: str) -> None:
    for args in (("inspect", url), ("push", "nowhere", url), ("pull", url, "nowhere"), ("verify", url)):
        if args[0] != "push":
            result = _run(*args)
            assert result.exit_code == 2
            assert said in result.stderr
            assert SECRET not in result.output
    with pytest.raises(UsageError, match=said) as caught:
        open_objects(url)
    assert SECRET not in "".join(traceback.format_exception(caught.value, chain=True)).replace(repr(url), "")


def test_no_secret_is_told(
    tmp_path: Path, digits_cache: Path, proxy: FaultyProxy, bucket: str, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What the environment holds, and what a refused URL holds, is in no object, file, log, output or error."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level("DEBUG")
    said, logits = [], np.random.default_rng(0).normal(size=(1, 60, 12))
    np.save("logits.npy", logits)
    for fault in (None, refuse(403, "InvalidAccessKeyId"), drop):
        proxy.plan = [] if fault is None else [("", fault, 1000)]
        for line in (
            f"pack logits.npy {bucket}/{'x' if fault is None else 'y'}",
            f"inspect {bucket}/x --json",
            f"verify {bucket}/x",
            f"pull {bucket}/x back{len(said)}",
            f"push {digits_cache} {bucket}/z",
            f"inspect https://me:{SECRET}@localhost/x",
        ):
            result = _run(*line.split())
            assert (result.exit_code == 0) == (fault is None and "https" not in line), result.output
            error = result.exception
            said += [result.output, "" if error is None else "".join(traceback.format_exception(error))]
    proxy.plan.clear()
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    objects = [*_contents(f"{bucket}/x").values(), *_contents(f"{bucket}/z").values()]
    assert len(files) > 10
    assert len(objects) > 20
    assert SECRET not in "".join(said) + caplog.text
    assert not any(SECRET.encode() in data for data in files + objects)


_FORK = """
import os, sys
from gdkd_cache.objects.objects import open_objects
objects = open_objects("s3://bucket/x")
if os.fork() == 0:
    try:
        objects.size("a")
    except Exception as error:
        print(type(error).__name__, error, flush=True)
    os._exit(0)
os.wait()
"""


def test_a_store_stays_in_its_process(digits_cache: Path, bucket: str) -> None:
    copy(digits_cache, f"{bucket}/x")
    with pytest.raises(TypeError, match="stays in its process"):
        pickle.dumps(open_cache(f"{bucket}/x"))
    run = subprocess.run([sys.executable, "-c", _FORK], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.startswith("StoreError s3://bucket/x/a: used in a forked process")


def test_commands_on_a_bucket(tmp_path: Path, weights: Path, bucket: str, proxy: FaultyProxy) -> None:
    """`show`, `verify` and `repair` of a cache in a bucket, of streamed images in a bucket; copies are read again."""

    def run(line: str) -> str:
        result = CliRunner().invoke(main, line.format(tmp=tmp_path, bucket=bucket, weights=weights).split())
        assert result.exit_code == 0, result.output
        return result.output

    source = gc.open_source("digits")
    (tmp_path / "images").mkdir()
    write_shards(tmp_path / "images", source, (700, 738))
    put_files(bucket, "images", {path.name: path.read_bytes() for path in (tmp_path / "images").iterdir()})
    images = "--data wds:{bucket}/images/Train-{{0..1}}.tar --stream --local-copy {tmp}/kept"
    teacher = "--teacher cnn-s --weights {weights}"
    run(f"build {images} {teacher} --accept-teacher --views 1 --codec dense --workers 0 --out {{bucket}}/c.zarr")
    out = run(f"show {{bucket}}/c.zarr {images} --rows 2 --views 0 --out {{tmp}}/views.png")
    assert "views.png" in out
    with Image.open(tmp_path / "views.png") as picture:
        assert picture.width > 100
    verified = run(f"verify {{bucket}}/c.zarr --deep {images} {teacher} --rows 16")
    assert "100.00% of the stored top classes are the same" in verified
    assert {"shards"} < {path.name for path in (tmp_path / "kept").iterdir()}  # and what was read of the cache
    put_files(bucket, "c.zarr/labels/c", {"0": b"damaged"})
    assert "1 objects repaired, whole" in run(f"repair {{bucket}}/c.zarr {images}")
