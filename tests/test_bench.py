"""Every row of scripts/bench.py runs."""

import json
import subprocess
import sys
from pathlib import Path

_SCRIPT = Path(__file__).parents[1] / "scripts" / "bench.py"


def test_every_row_runs() -> None:
    """At the smallest size, once: not to measure anything."""
    done = subprocess.run([sys.executable, _SCRIPT, "--smoke", "--json"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["figures"]
    assert {figure["row"] for figure in figures} == {
        "loss", "train-overhead", "train-live", "build-overhead", "startup",
    }  # fmt: skip
    assert all(ratio > 0 for figure in figures for ratio in figure["ratios"])


def test_an_unknown_row() -> None:
    done = subprocess.run([sys.executable, _SCRIPT, "speed"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "speed is no row; rows are loss," in done.stderr
