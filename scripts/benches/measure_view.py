"""Time and memory of a view with whatever gdkd_cache is there, 0.1.0 included: a process of the row `view-load`.

python -m benches.measure_view CACHE [LOGITS.npz]    # with logits it is written first
"""

import json
import sys
import time

import numpy as np

import gdkd_cache as gc
from benches.memory import resident

_HELD = 2


def pack(out: str, file: str) -> None:
    """Write a cache of given logits and labels."""
    with np.load(file) as given:
        logits, labels = given["logits"], given["labels"]
    keys = [f"{row:07d}" for row in range(len(labels))]
    gc.pack(out, [logits], keys=keys, labels=labels, codec="transform:step=1")


def load(path: str) -> dict[str, float]:
    """Seconds to load a view, and the bytes that it takes: of several, as one alone is lost in what Python takes."""
    cache = gc.open_cache(path)
    cache.view(0).logits([0])
    before = resident()
    start = time.perf_counter()
    views = [cache.view(0) for _ in range(_HELD)]
    seconds = time.perf_counter() - start
    return {"seconds": seconds / _HELD, "bytes": (resident() - before) / len(views)}


if __name__ == "__main__":
    if len(sys.argv) == 3:
        pack(*sys.argv[1:])
    print(json.dumps(load(sys.argv[1])))
