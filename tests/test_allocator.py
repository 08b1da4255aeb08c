"""The commands keep the memory that a network frees; nothing else of a user's set-up is touched."""

import resource
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from gdkd_cache_cli.main import main

from gdkd_cache import allocator

_PAGES = 2**25 // resource.getpagesize()


def _faults(times: int) -> int:
    """Pages that the system gives to tensors of 32 MiB, made and freed one after the other."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.zeros(2**23).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_freed_memory_is_kept() -> None:
    if not allocator.keep_memory():
        pytest.skip("not glibc")
    _faults(1)
    assert _faults(20) < 5 * _PAGES  # 20 where each is given back


@pytest.mark.parametrize(
    ("name", "value"),
    [("MALLOC_ARENA_MAX", "1"), ("MALLOC_TRIM_THRESHOLD_", "1"), ("GLIBC_TUNABLES", "glibc.malloc.top_pad=1")],
)
def test_a_users_own_set_up_is_left(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setattr("ctypes.CDLL", None)
    monkeypatch.setenv(name, value)
    assert not allocator.keep_memory()


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_other_libraries_are_left(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert not allocator.keep_memory()


def test_commands_keep_memory(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(allocator, "keep_memory", lambda: called.append("kept"))
    monkeypatch.chdir(tmp_path)
    teacher = f"--data digits --teacher cnn-s --weights {weights} --device cpu"
    commands = [
        f"build {teacher} --accept-teacher --views 1 --codec dense --out a.zarr",
        f"verify a.zarr {teacher}",
        "train --loss gdkd --data digits --cache a.zarr --student cnn-s --epochs 1 --device cpu --out run",
    ]
    for number, command in enumerate(commands, 1):
        result = CliRunner().invoke(main, command.split())
        assert result.exit_code == 0, result.output
        assert len(called) == number
