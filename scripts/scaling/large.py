"""A large cache of cheap logits: what it takes to pack, to open, to check a sample of and to read batches from.

python -m scaling.large pack|read ROWS FOLDER
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from benches.memory import begin_peak, peak

from gdkd_cache import open_cache, pack
from gdkd_cache.terminal import say

_SCRIPTS = Path(__file__).parents[1]
_BATCH = 4096


def tell_large(rows: int, folder: Path) -> None:
    """Pack and read in a process each, so that each has its own peak of memory."""
    for what in ("pack", "read"):
        subprocess.run([sys.executable, "-m", "scaling.large", what, str(rows), str(folder)], cwd=_SCRIPTS, check=True)


def _told(what: str, call: Callable[[], object]) -> None:
    before, start = begin_peak(), time.perf_counter()
    call()
    more, seconds = (peak() - before) / 1e6, time.perf_counter() - start
    say(f"{what}: {seconds:.2f} s, {more:,.0f} MB more, {peak() / 1e6:,.0f} MB in all")


def _pack(rows: int, out: Path) -> None:
    logits = np.lib.format.open_memmap(out.parent / "logits.npy", "w+", np.float16, (1, rows, 4))
    rng, pattern = np.random.default_rng(0), 2**16
    values = rng.normal(size=(pattern, 4)).astype(np.float16)
    for first in range(0, rows, pattern):
        logits[0, first : first + pattern] = values[: rows - first]
    keys, labels = [f"{row:x}" for row in range(rows)], np.arange(rows) % 4
    _told("pack", lambda: pack(out, logits, keys=keys, labels=labels, codec="dense", losses=["kd"]))


def _read(rows: int, out: Path) -> None:
    cache = open_cache(out)
    del cache
    _told("open", lambda: open_cache(out))
    cache = open_cache(out)
    say(f"{len(cache.manifest.objects):,} objects, {cache.manifest.num_bytes / 1e6:,.0f} MB")
    names = list(cache.manifest.objects)[:: max(len(cache.manifest.objects) // 100, 1)]
    _told(f"check {len(names)} objects", lambda: [cache.read(name) for name in names])
    _told("load the view", lambda: cache.once("view", lambda: cache.view(0)))
    view, rng = cache.once("view", lambda: cache.view(0)), np.random.default_rng(0)
    _told("100 batches of 4096", lambda: [view.logits(rng.integers(0, rows, _BATCH)) for _ in range(100)])
    _told("the keys", lambda: len(cache.keys))


if __name__ == "__main__":
    what, rows, folder = sys.argv[1:]
    {"pack": _pack, "read": _read}[what](int(rows), Path(folder) / "large.zarr")
