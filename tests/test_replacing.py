"""`--force`: what is not a cache's own stays, and a build that is displaced, wherever it sleeps, harms nothing."""

import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faulty import FaultyProxy
from small import build_small, counting

from gdkd_cache import open_cache
from gdkd_cache.building.builder import Builder
from gdkd_cache.checking.verify import verify
from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import CacheError, MismatchError
from gdkd_cache.models.network import Network
from gdkd_cache.objects.folder import Folder
from gdkd_cache.objects.objects import WritableObjects, open_writable
from gdkd_cache.sharing.copy import copy
from gdkd_cache.store.facts import UNFITTED, UNMEASURED
from gdkd_cache.store.manifest import REPLACED_NAME, canonical_json
from gdkd_cache.store.place import Begun, Empty, Place
from gdkd_cache.store.writer import CacheWriter

_SMALL: dict[str, Any] = {"codec": "transform", "shard_rows": 70}


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory, digits: ArraySource, teacher: Network) -> str:
    """Of the build that replaces others, of seed 1."""
    return build_small(tmp_path_factory.mktemp("whole") / "a", digits, teacher, seed=1, **_SMALL).manifest.digest


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _whole(out: str | Path, digest: str) -> None:
    assert open_cache(out).manifest.digest == digest
    assert verify(out).problems == ()


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    "name",
    ["Notes.txt", "thesis/one.tex", "data.csv", "ledger/2024.csv", "ledger/0/notes.json", "logits/extra",
     "draft.partial", "claims/letter.pdf", "zarr/c/0"],
)  # fmt: skip
def test_what_is_not_the_caches_own_stays(
    tmp_path: Path, digits: ArraySource, teacher: Network, name: str, finished: bool
) -> None:
    out = tmp_path / "a.zarr"
    if finished:
        build_small(out, digits, teacher, **_SMALL)
    else:
        with pytest.raises(KeyboardInterrupt):
            build_small(out, digits, counting(teacher, 256 + 200)[0], **_SMALL)
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text("precious")
    before = _files(out)
    with pytest.raises(
        CacheError, match=f"holds '?{name}'? .1 such., which no manifest or ledger.*nothing was removed"
    ):
        build_small(out, digits, teacher, force=True, seed=1, **_SMALL)
    assert _files(out) == before


def test_a_clone_with_its_history(tmp_path: Path, digits: ArraySource, teacher: Network, digest: str) -> None:
    """A cache that git has cloned, as from a dataset hub: hidden names are neither objects nor anybody's to remove."""
    out = tmp_path / "a.zarr"
    first = build_small(out, digits, teacher, **_SMALL).manifest.digest
    hidden = {".git/config": b"[core]", ".git/objects/ab/cd": b"x", ".gitattributes": b"*", "logits/.note": b"y"}
    for name, data in hidden.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    _whole(out, first)
    copy(out, tmp_path / "pulled.zarr")
    _whole(tmp_path / "pulled.zarr", first)
    assert not (tmp_path / "pulled.zarr" / ".git").exists()
    build_small(out, digits, teacher, force=True, seed=1, **_SMALL)
    _whole(out, digest)
    assert hidden.items() <= _files(out).items()
    new = tmp_path / "clone"
    shutil.copytree(out / ".git", new / ".git")
    copy(out, new)
    _whole(new, digest)


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("method", ["source_probes", "fit", "identity"])
def test_displaced_while_computing(
    tmp_path: Path, bucket: str, digits: ArraySource, teacher: Network, digest: str, monkeypatch: pytest.MonkeyPatch,
    method: str, remote: bool,
) -> None:  # fmt: skip
    """Another build takes the place while this one calibrates, or has all its shards and computes what is left."""
    out: str | Path = f"{bucket}/{method}" if remote else tmp_path / "a.zarr"
    with pytest.raises(KeyboardInterrupt):
        build_small(out, digits, counting(teacher, 256 + 200)[0], seed=3 if method == "fit" else 2, **_SMALL)
    original, turns = getattr(Builder, method), iter(range(1))

    def displaced(builder: Builder) -> Any:
        if next(turns, None) is not None:
            build_small(out, digits, teacher, force=True, seed=1, **_SMALL)
        return original(builder)

    monkeypatch.setattr(Builder, method, displaced)
    with pytest.raises(
        MismatchError, match=r"given to another build, with --force|holds another build|began here mean"
    ):
        build_small(out, digits, teacher, seed=2, force=method == "fit", **_SMALL)
    _whole(out, digest)


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("nth", [0, 1, 3, 5, 9])
def test_displaced_inside_a_commit(
    tmp_path: Path, bucket: str, digits: ArraySource, teacher: Network, digest: str, monkeypatch: pytest.MonkeyPatch,
    nth: int, remote: bool,
) -> None:  # fmt: skip
    """Its writer sleeps before a write, while another takes the place, builds and finishes: it writes no more."""
    out: str | Path = f"{bucket}/{nth}" if remote else tmp_path / "a.zarr"
    write, writes = CacheWriter._write, iter(range(1000))

    def sleeping(writer: CacheWriter, name: str, data: bytes) -> None:
        if next(writes) == nth:
            build_small(out, digits, teacher, force=True, seed=1, **_SMALL)
        write(writer, name, data)

    monkeypatch.setattr(CacheWriter, "_write", sleeping)
    with pytest.raises(MismatchError, match="given to another build, with --force"):
        build_small(out, digits, teacher, **_SMALL)
    _whole(out, digest)


def test_nobody_is_alone_within_a_write(tmp_path: Path) -> None:
    """Who was stopped between the question and the write still holds off whoever would take the place."""
    folder, asked, awake, order = Folder(tmp_path), threading.Event(), threading.Event(), []

    def sleep() -> None:
        asked.set()
        awake.wait()

    def take() -> None:
        with Folder(tmp_path).alone():
            order.append((tmp_path / "a").exists())

    with ThreadPoolExecutor(2) as executor:
        writing = executor.submit(folder.write, "a", b"x", allowed=sleep)
        asked.wait()
        taking = executor.submit(take)
        time.sleep(0.1)
        too_early = taking.done()
        awake.set()
        writing.result()
        taking.result()
    assert not too_early
    assert order == [True]


def test_a_late_write_to_a_bucket(bucket: str, proxy: FaultyProxy) -> None:
    """What others wrote after the question was answered is not overwritten; nor is what they created."""
    late, other = open_writable(f"{bucket}/x"), open_writable(f"{bucket}/x")
    other.write("old", b"old")
    for name in ("old", "new"):
        answers = iter([True])

        def allowed(name: str = name, answers: Any = answers) -> None:
            if next(answers, None) is None:
                raise MismatchError("displaced")
            other.write(name, b"theirs")

        with pytest.raises(MismatchError, match="displaced"):
            late.write(name, b"mine", allowed=allowed)
        assert other.read(name, 100) == b"theirs"


def _fails(objects: WritableObjects, method: str, turn: int) -> Callable[..., Any]:
    """A method of a folder that fails at its nth call."""
    original, turns = getattr(type(objects), method), iter(range(1000))

    def fails(*arguments: Any, **named: Any) -> Any:
        if next(turns) == turn:
            raise KeyboardInterrupt
        return original(*arguments, **named)

    return fails


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("method", "turn"), [*(("write", turn) for turn in range(5)), *(("delete", n) for n in range(4))]
)
def test_killed_while_it_replaces(
    tmp_path: Path, digits: ArraySource, teacher: Network, digest: str, method: str, turn: int, finished: bool
) -> None:
    """At each step: the same command goes on, and nothing of the old cache stays."""
    out = tmp_path / "a.zarr"
    old = {"codec": "dense", "num_views": 3}
    if finished:
        build_small(out, digits, teacher, **old)
    else:
        with pytest.raises(KeyboardInterrupt):
            build_small(out, digits, counting(teacher, 256 + 200)[0], shard_rows=70, **old)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Folder, method, _fails(Folder(out), method, turn))
        with pytest.raises(KeyboardInterrupt):
            build_small(out, digits, teacher, force=True, seed=1, **_SMALL)
    build_small(out, digits, teacher, force=True, seed=1, **_SMALL)
    _whole(out, digest)


def test_a_forged_list_of_what_goes(tmp_path: Path, digits: ArraySource, teacher: Network) -> None:
    out = tmp_path / "a.zarr"
    with pytest.raises(KeyboardInterrupt):
        build_small(out, digits, counting(teacher, 256 + 200)[0], **_SMALL)
    precious = {"thesis/one.tex": b"x", "../b": b"y", "Notes.txt": b"z"}
    for name, data in precious.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(data)
    (out / REPLACED_NAME).write_bytes(canonical_json({"names": [*precious, str(tmp_path / "b")]}))
    build_small(out, digits, teacher, **_SMALL)
    assert {name: (out / name).read_bytes() for name in precious} == precious


def test_only_what_stood_at_the_start_is_replaced(
    tmp_path: Path, digits: ArraySource, teacher: Network, digest: str
) -> None:
    """Two replace a third: the one that is later does not replace the other."""
    out = tmp_path / "a.zarr"
    manifest = build_small(out, digits, teacher, **_SMALL).manifest
    assert manifest.identity.views is not None
    views = replace(manifest.identity.views, seed=3)
    identity = replace(manifest.identity, views=views, codec=UNFITTED, fidelity=UNMEASURED)
    late = Place(out, identity)
    assert late.look(force=True) == Empty()
    build_small(out, digits, teacher, force=True, seed=1, **_SMALL)
    with pytest.raises(MismatchError, match=r"views.seed is 1 there, 3 asked"):
        late.look(force=True)
    with pytest.raises(MismatchError, match=r"another build began here meanwhile: views.seed is 1 there, 3 asked"):
        late.begin(Begun(open_cache(out).codec, manifest.identity.fidelity))
    _whole(out, digest)
