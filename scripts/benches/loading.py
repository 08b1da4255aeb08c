"""A view in memory beside what version 0.1.0 made of it."""

import subprocess
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np

from benches.outputs import logits_of
from benches.process import PRESENT, measured
from benches.timing import Bench, Figure, ratios
from gdkd_cache.terminal import say

_BEFORE = "5ccdda5f8b047365cd287f0853193d7b7a952360"
"""The commit that is version 0.1.0."""


def view_load(bench: Bench) -> Iterator[Figure]:
    """Time and resident bytes of a view against version 0.1.0, each in a process of its own, of one cache."""
    before = _exported(bench.folder / "before")
    if before is None:
        say(f"view-load: skipped: there is no git here with the commit {_BEFORE[:8]} of version 0.1.0", error=True)
        return
    num_rows = 4_000 if bench.smoke else 100_000
    for num_classes in (100,) if bench.smoke else (100, 1000):
        cache, given = bench.folder / f"{num_classes}.zarr", bench.folder / f"{num_classes}.npz"
        logits, labels = logits_of(num_rows, num_classes)
        np.savez(given, logits=logits, labels=labels)
        found = {before: [measured("measure_view", cache, given, code=before)], PRESENT: []}
        for repeat in range(bench.repeats):
            for code, results in found.items():
                if len(results) == repeat:  # the first of 0.1.0 is that of the process that wrote the cache
                    results.append(measured("measure_view", cache, code=code))
        size = f"{num_rows:,} x {num_classes}"
        for what, number, goal in (("time to load", "seconds", "<= 0.5"), ("memory of", "bytes", "<= 0.2")):
            ours, theirs = ([result[number] for result in found[code]] for code in (PRESENT, before))
            yield Figure(what=f"{what} a view, {size}", against="version 0.1.0", ratios=ratios(ours, theirs), goal=goal)


def _exported(folder: Path) -> Path | None:
    """The library as it was, in a folder; None where git does not know it."""
    root = Path(__file__).parents[2]
    try:
        done = subprocess.run(["git", "-C", root, "archive", _BEFORE, "gdkd_cache"], capture_output=True)
    except FileNotFoundError:
        return None
    if done.returncode:
        return None
    with tarfile.open(fileobj=BytesIO(done.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder
