"""What reads hostile caches in tests: all that a user does, while memory, writes and execution are watched."""

import contextlib
import copy
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from gdkd_cache import open_cache
from gdkd_cache.checking.verify import verify
from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import GdkdCacheError

CODECS = ("topk", "dense", "transform:step=0.3")
_MEMORY = 2**30
_FORBIDDEN = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect")
_armed = False
_seen: list[str] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not _armed:
        return
    writes = (
        event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and ".pyc" not in str(arguments[0])
    )
    if writes or event.startswith(_FORBIDDEN):
        _seen.append(f"{event} {arguments[:2]}")


sys.addaudithook(_watch)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Nothing may execute, connect or write, and no more than 1 GB may be mapped on top of what is."""
    global _armed
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + _MEMORY, hard))
    _seen.clear()
    _armed = True
    try:
        yield
    finally:
        _armed = False
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert not _seen


def read_all(path: Path, source: ArraySource) -> None:
    """All that a user does with a cache, short of a teacher."""
    for problem in verify(path, deep=True).problems:
        assert "\n" not in problem
    cache = open_cache(path)
    assert len(cache.keys) == len(cache.labels) == cache.num_rows
    for number in range(cache.num_views):
        view = cache.view(number)
        rows = range(min(cache.num_rows, 64))
        assert view.logits(rows).isfinite().all()
        assert view.topk(rows).classes.max() < cache.num_classes
    next(iter(cache.dataset(source).loader(0, batch_size=16)))


def outcome(path: Path, source: ArraySource) -> str:
    """`read`, or what it was refused with."""
    said = "read"
    with watched():
        try:
            read_all(path, source)
        except GdkdCacheError as error:
            said = str(error)
    assert "\n" not in said
    assert len(said) < 1000
    return said


def mutable(path: Path, tmp: Path) -> Path:
    shutil.rmtree(tmp / "c", ignore_errors=True)
    return Path(shutil.copytree(path, tmp / "c"))


_DEEP: Any = []
for _ in range(200):
    _DEEP = [_DEEP]
_VALUES = st.one_of(
    st.sampled_from(
        [None, True, False, 0, -1, 1, 2, 255, 2**31, 10**12, -(10**30), 0.0, -1.5, 1e-320, 1e308, "", "a",
         "../../etc/passwd", "/etc/passwd", "x" * 5000, "\x1b[2J\n", "__import__('os').system('true')",
         "cposix\nsystem\n(S'true'\ntR.", [], {}, [None], [[]], {"a": 1}, {"loss": "kd"}, ["../x"], _DEEP]
    ),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
)  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield (*path, name)
        yield from _places(item, (*path, name))


@st.composite
def mutations(draw: st.DrawFn, stored: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with one to three values replaced, removed, added, or grown."""
    stored = copy.deepcopy(stored)
    for _ in range(draw(st.integers(1, 3))):
        places = [place for place in _places(stored) if place[0] != "digest"]
        if not places:
            break
        *path, last = draw(st.sampled_from(places))
        parent: Any = stored
        for name in path:
            parent = parent[name]
        what = draw(st.sampled_from(["replace", "remove", "add", "near"]))
        if what == "remove":
            del parent[last]
        elif what == "near" and type(parent[last]) in (int, float):
            parent[last] = parent[last] * draw(st.sampled_from([-1, 0, 2, 3, 1000])) + draw(st.integers(-1, 1))
        elif what == "add" and isinstance(parent, dict):
            parent[draw(st.text(min_size=1, max_size=6))] = draw(_VALUES)
        elif what == "add" and isinstance(parent, list):
            parent.insert(0, draw(_VALUES))
        else:
            parent[last] = draw(_VALUES)
    return stored


_CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
FUZZ = settings(max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=_CHECKS)
