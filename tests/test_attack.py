"""A short run of scripts/attack.py: each family gets nothing through; and what would, is found."""

import importlib
import os
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

_SCRIPTS = Path(__file__).parents[1] / "scripts"


def test_nothing_gets_through() -> None:
    script = [sys.executable, str(_SCRIPTS / "attack.py"), "--count", "39", "--seed", "1"]
    run = subprocess.run(script, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    assert "39 cases" in run.stdout


@pytest.fixture
def attacks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(_SCRIPTS))
    return importlib.import_module("attacks.run")


_REFUSED = "Error: weights x.pt are none; name others\n"


@pytest.mark.parametrize(
    ("found", "code", "facts"),
    [
        (None, 1, {"err": _REFUSED}),
        (None, 2, {"err": f"Usage: gdkd-cache eval\n\n{_REFUSED}"}),
        (None, 1, {"err": "a is damaged\nb is missing\n", "out": "c.zarr: 9 objects checked, 2 problems; sha256:0\n"}),
        (None, 0, {"out": "whole\n"}),
        ("exit 0", 0, {"refuse": True}),
        ("hangs", None, {}),
        ("ended by signal 11", -11, {}),
        ("held 2,147 MB", 1, {"err": _REFUSED, "peak": 2**31}),
        ("executed os.system", 1, {"err": _REFUSED, "events": ("executed os.system ('id',)",)}),
        ("traceback", 1, {"err": "Traceback (most recent call last):\n  File x\nKeyError: 1\n"}),
        ("not refused in one line", 1, {"err": f"{_REFUSED}and more\n"}),
        ("not refused in one line", 1, {"err": _REFUSED * 2}),
        ("not refused in one line", 1, {}),
        ("prints raw", 1, {"err": "Error: \x1b[2J\n"}),
        ("forges", 1, {"err": f"31 objects checked, whole\n{_REFUSED}"}),
    ],
)
def test_what_is_found(attacks: ModuleType, found: str | None, code: int | None, facts: dict[str, Any]) -> None:
    case = attacks.Case(command=["eval"], refuse=facts.pop("refuse", False))
    run = attacks.Run(code=code, **{"out": "", "err": "", "events": (), "peak": 2**28, "modules": ()} | facts)
    fault = attacks._fault(case, run)
    assert (fault is None) if found is None else (fault is not None and found in fault)


def test_what_is_watched(attacks: ModuleType, tmp_path: Path) -> None:
    """Execution, changes elsewhere, what a command left, and one that does not end."""
    (tmp_path / "evil").mkdir()
    kit = attacks.Kit(tmp_path)

    def attack(code: str, **facts: Any) -> str | None:
        def main(*given: Any, **named: Any) -> None:
            exec(code, {"os": os})

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attacks, "main", main)
            _, _, fault = attacks.attack(kit, lambda attack: attacks.Case(command=["x"], **facts), 0, random.Random(0))
        return fault

    assert attack("") is None
    assert attack("open('here', 'w').close()") is None
    assert "changed" in str(attack(f"open('{tmp_path}/there', 'w').close()"))
    assert "changed" in str(attack(f"os.remove('{tmp_path}/there')"))
    assert "executed os.system" in str(attack("os.system('true')"))
    assert "hangs" in str(attack("while True: pass", seconds=0.2))
    assert "hangs" not in str(attack("while True: pass", kill=0.2))
    assert "held" in str(attack("x = b'x' * 2**30 + b'y'"))
    assert "prints raw" in str(attack("os.write(1, bytes([27]))"))
    assert "left" in str(attack("", after=lambda code: "left"))
