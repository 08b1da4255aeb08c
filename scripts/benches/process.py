"""Something measured in a process of its own, with other code if need be."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gdkd_cache

_SCRIPTS = Path(__file__).parents[1]
PRESENT = Path(gdkd_cache.__file__).parents[1]
"""Where the code lies that is measured."""


def measured(module: str, *arguments: object, code: Path = PRESENT) -> dict[str, float]:
    """What a module of `benches` prints when it is run: one JSON object of numbers.

    Args:
        module: such as `measure_view`.
        arguments: of it.
        code: the folder that `gdkd_cache` is imported from.
    """
    # -P, or a gdkd_cache in the folder where this was started would come first.
    command = [sys.executable, "-P", "-m", f"benches.{module}", *map(str, arguments)]
    # One arena, as what is free in those of other threads is hardly given back, and would count as taken.
    environment = {"PYTHONPATH": os.pathsep.join(map(str, (code, _SCRIPTS))), "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)
