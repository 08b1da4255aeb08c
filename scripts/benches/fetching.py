"""Batches of logits from a view in memory, from one record a sample in a file, and from an array of all logits."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import gdkd_cache as gc
from benches.outputs import logits_of
from benches.timing import Bench, Figure, ratios

_BATCH, _BATCHES = 1024, 8
_KEPT = 10  # as TinyViT keeps of ImageNet-1k
_RECORD = np.dtype([("seed", "<i4"), ("ids", "<i2", _KEPT), ("values", "<f2", _KEPT)])


def fetch(bench: Bench) -> Iterator[Figure]:
    """Shuffled batches of 1024 decoded logits against TinyViT's layout, and a float16 memory map, hot."""
    num_rows = 2 * _BATCH if bench.smoke else 100_000
    for num_classes in (100,) if bench.smoke else (100, 1000):
        logits, labels = logits_of(num_rows, num_classes)
        keys = [f"{row:07d}" for row in range(num_rows)]
        out = bench.folder / f"{num_classes}.zarr"
        gc.pack(out, [logits], keys=keys, labels=labels, codec="transform:step=1")
        view = gc.open_cache(out).view(0)
        whole = np.memmap(bench.folder / f"{num_classes}.logits", np.float16, "w+", shape=logits.shape)
        whole[:] = logits
        records = _Records(bench.folder / f"{num_classes}.records", logits, keys)
        rows = np.random.default_rng(0).permutation(num_rows)[: _BATCH * _BATCHES]
        batches = np.array_split(rows, -(-len(rows) // _BATCH))
        times = bench.seconds(
            {
                "view": _each(batches, lambda some, view=view: view.logits(some, bench.device)),
                "records": _each(batches, lambda some, records=records: records.probabilities(some).to(bench.device)),
                "map": _each(batches, lambda some, whole=whole: torch.from_numpy(whole[some]).to(bench.device).float()),
            }
        )
        size = f"{num_rows:,} x {num_classes}"
        for name, against, goal in (
            ("records", "a record a sample, as TinyViT", ">= 50"),
            ("map", "float16 memory map", ">= 1"),
        ):
            what = f"batches of logits a second, transform, {size}"
            yield Figure(what=what, against=against, ratios=ratios(times[name], times["view"]), goal=goal)


def _each(batches: list[np.ndarray], call: Callable[[np.ndarray], object]) -> Callable[[], None]:
    def run() -> None:
        for rows in batches:
            call(rows)

    return run


class _Records:
    """TinyViT's layout: headerless records in a file, found by key through a dictionary, read one at a time."""

    def __init__(self, path: Path, logits: np.ndarray, keys: list[str]) -> None:
        self._num_classes, self._keys = logits.shape[1], keys
        self._offsets = {key: row * _RECORD.itemsize for row, key in enumerate(keys)}
        with path.open("wb") as file:
            for rows in np.array_split(np.arange(len(logits)), -(-len(logits) // 4096)):
                top = torch.from_numpy(logits[rows].astype(np.float32)).softmax(-1).topk(_KEPT)
                records = np.zeros(len(rows), _RECORD)
                records["ids"], records["values"] = top.indices.numpy(), top.values.numpy()
                file.write(records.tobytes())
        self._file = path.open("rb")

    def probabilities(self, rows: np.ndarray) -> Tensor:
        """Float32 [batch, class]: what the kept classes leave is spread over the others."""
        ids, values = [], []
        for row in rows.tolist():
            self._file.seek(self._offsets[self._keys[row]])
            record = self._file.read(_RECORD.itemsize)
            ids.append(np.frombuffer(record, "<i2", _KEPT, 4))
            values.append(np.frombuffer(record, "<f2", _KEPT, 4 + 2 * _KEPT))
        kept = torch.from_numpy(np.stack(values)).float()
        rest = (1 - kept.sum(-1, keepdim=True)) / (self._num_classes - _KEPT)
        return rest.repeat(1, self._num_classes).scatter_(-1, torch.from_numpy(np.stack(ids)).long(), kept)
