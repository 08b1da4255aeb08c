#!/usr/bin/env python
"""Bytes, gradient error and speed of our codecs beside the record layouts of other tools, in one run.

    python scripts/bench_codec.py LOGITS.npz [--json]

LOGITS.npz holds `teacher` [view, row, class] float and `label` [row]. Our figures are of whole caches on disk, every
file counted; the others' are of their records, written to disk too, without keys or labels. Gradient errors are over
all views and rows, for a uniform student with the exact partition; our codecs calibrate on view 0 alone.
"""

import argparse
import gzip
import json
import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import gdkd_cache as gc
from gdkd_cache import open_cache, pack
from gdkd_cache.codec.base import Codec
from gdkd_cache.codec.fidelity import encode_rows, gradient_error
from gdkd_cache.codec.transform.codec import TransformCodec
from gdkd_cache.losses.partition import top_classes

_LOSSES = {
    "T=4 1/1/8": gc.loss("gdkd:temperature=4.0,w0=1.0,w1=1.0,w2=8.0"),
    "T=1 .5/1/1": gc.loss("gdkd:temperature=1.0,w0=0.5,w1=1.0,w2=1.0"),
}
_LEAST = 2.0**-25  # half of what float16 can still tell from zero: the kindest stand-in for a vanished probability


def _errors(full: Tensor, decoded: Tensor, labels: Tensor) -> dict[str, float]:
    top = top_classes(full, 5)
    return {name: gradient_error(loss, full, decoded, labels, top) for name, loss in _LOSSES.items()}


def _ours(spec: dict[str, object], views: np.ndarray, labels: np.ndarray, folder: Path) -> dict[str, object]:
    keys = [str(row) for row in range(views.shape[1])]
    manifest = pack(folder, views, keys=keys, labels=labels, **spec)  # pyright: ignore[reportArgumentType]
    cache = open_cache(folder)
    start = time.perf_counter()
    for view in views:
        encode_rows(cache.codec, torch.from_numpy(view.astype(np.float32)), torch.from_numpy(labels))
    encode = time.perf_counter() - start
    everything = np.arange(views.shape[1])
    start = time.perf_counter()
    loaded = [cache.view(number) for number in range(cache.num_views)]
    load = time.perf_counter() - start
    start = time.perf_counter()
    decoded = torch.cat([view.logits(some) for view in loaded for some in np.array_split(everything, 4)])
    decode = time.perf_counter() - start
    full = torch.from_numpy(views.astype(np.float32)).flatten(0, 1)
    top = torch.cat([view.topk(everything).classes for view in loaded])
    assert torch.equal(top, top_classes(full, top.shape[1])), "a partition differs from the full logits'"
    rows = len(full)
    on_disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    per_view = sum(record.size for name, record in manifest.objects.items() if "/c/" in name and name.count("/") > 2)
    return {
        "bytes": on_disk / rows,
        "fixed": (on_disk - per_view) / rows,
        "entropy": _entropy(cache.codec, views, labels),
        "encode": rows / encode,
        "load": rows / load,
        "decode": rows / decode,
        **_errors(full, decoded, torch.from_numpy(labels).repeat(len(views))),
    }


def _entropy(codec: Codec, views: np.ndarray, labels: np.ndarray) -> float | None:
    """Empirical order-0 entropy, in bytes a view, of the integers that `transform` stores, each column on its own."""
    if not isinstance(codec, TransformCodec):
        return None
    total = 0.0
    for view in views:
        symbols = codec.quantised(torch.from_numpy(view.astype(np.float32)), torch.from_numpy(labels)).numpy()
        for column in symbols.T:
            shares = np.unique(column, return_counts=True)[1] / len(column)
            total -= float((shares * np.log2(shares)).sum()) / 8
    return total / len(views)


def _head(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    probabilities = logits.softmax(-1)
    classes = top_classes(logits, k)
    return classes, probabilities.gather(-1, classes)


def _uniform_tail(classes: Tensor, probabilities: Tensor, num_classes: int) -> Tensor:
    """Log-probabilities with what the head leaves spread over the other classes."""
    k = classes.shape[1]
    rest = (1 - probabilities.sum(-1, keepdim=True)).clamp(min=0) / max(num_classes - k, 1)
    spread = rest.repeat(1, num_classes).scatter(-1, classes, probabilities)
    return spread.clamp(min=_LEAST).log()


def _tinyvit(k: int) -> Callable[[Tensor], tuple[bytes, Tensor]]:
    """int32 seed, then k x (int16 id, fp16 probability), headerless."""

    def codec(logits: Tensor) -> tuple[bytes, Tensor]:
        classes, probabilities = _head(logits, k)
        record = np.zeros(len(logits), np.dtype([("seed", "<i4"), ("ids", "<i2", k), ("values", "<f2", k)]))
        record["ids"], record["values"] = classes.numpy(), probabilities.numpy()
        stored = torch.from_numpy(record["values"].astype(np.float32))
        return record.tobytes(), _uniform_tail(classes, stored, logits.shape[1])

    return codec


def _ml_dr(logits: Tensor) -> tuple[bytes, Tensor]:
    """Per view, Python lists of the augmentation's parameters and 10 x (probability, id), pickled and gzipped."""
    classes, probabilities = _head(logits, 10)
    rng = np.random.default_rng(0)
    records = []
    probabilities = probabilities.half().float()  # short numbers gzip better
    for ids, values in zip(classes.tolist(), probabilities.tolist(), strict=True):
        augmentation = [*rng.integers(0, 32, 4).tolist(), bool(rng.integers(2))]
        records.append(gzip.compress(pickle.dumps([augmentation, [values, ids]])))
    return b"".join(records), _uniform_tail(classes, probabilities, logits.shape[1])


def _fkd(logits: Tensor) -> tuple[bytes, Tensor]:
    """Crop box (4 x fp32), flip (1), 5 x (fp32 id, fp32 probability)."""
    classes, probabilities = _head(logits, 5)
    record = np.zeros(
        len(logits), np.dtype([("box", "<f4", 4), ("flip", "u1"), ("ids", "<f4", 5), ("values", "<f4", 5)])
    )
    record["ids"], record["values"] = classes.numpy(), probabilities.numpy()
    return record.tobytes(), _uniform_tail(classes, probabilities, logits.shape[1])


def _polynomial(logits: Tensor) -> tuple[bytes, Tensor]:
    """50 ids of 7 bits, the first 8 logits exact (fp32), a cubic in the rank for the others, the tail dropped."""
    kept, exact = min(50, logits.shape[1] - 1), 8
    classes = top_classes(logits, kept)
    values = logits.log_softmax(-1).gather(-1, classes)
    ranks = torch.linspace(-1, 1, kept - exact)
    powers = torch.stack([ranks**power for power in range(4)], -1)
    coefficients = torch.linalg.lstsq(powers, values[:, exact:].T).solution.T
    fitted = torch.cat([values[:, :exact], coefficients @ powers.T], -1)
    bits = max(int(logits.shape[1] - 1).bit_length(), 1)
    ids = np.packbits((classes.numpy()[:, :, None] >> np.arange(bits)) & 1).tobytes()
    data = ids + values[:, :exact].numpy().tobytes() + coefficients.numpy().tobytes()
    decoded = torch.full_like(logits, float(np.log(_LEAST))).scatter(-1, classes, fitted)
    return data, decoded


def _theirs(
    codec: Callable[[Tensor], tuple[bytes, Tensor]], views: np.ndarray, labels: np.ndarray, path: Path
) -> dict[str, object]:
    full = torch.from_numpy(views.astype(np.float32)).flatten(0, 1)
    start = time.perf_counter()
    data, decoded = codec(full)
    path.write_bytes(data)
    seconds = time.perf_counter() - start
    return {
        "bytes": path.stat().st_size / len(full),
        "fixed": 0.0,
        "entropy": None,
        "encode": len(full) / seconds,
        "load": None,
        "decode": None,
        **_errors(full, decoded, torch.from_numpy(labels).repeat(len(views))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logits", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with np.load(arguments.logits, allow_pickle=False) as file:
        views, labels = file["teacher"], file["label"].astype(np.int64)
    targets = [0.05, 0.1, 0.17, 0.27]
    ours: dict[str, dict[str, object]] = {
        f"transform, target {target}": {"codec": "transform", "fidelity": target} for target in targets
    }
    ours |= {"topk 8": {"codec": "topk"}, "topk 20": {"codec": "topk:k=20"}, "dense float16": {"codec": "dense"}}
    theirs: dict[str, Callable[[Tensor], tuple[bytes, Tensor]]] = {
        "TinyViT, k=10": _tinyvit(10),
        "TinyViT, all classes": _tinyvit(views.shape[2]),
        "ml-dr, k=10": _ml_dr,
        "FKD, k=5": _fkd,
        "polynomial head, 50 (as DistillKit)": _polynomial,
    }
    results: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, spec) in enumerate(ours.items()):
            results[name] = _ours(spec, views, labels, Path(folder) / f"{number}.zarr")
        for name, codec in theirs.items():
            results[name] = _theirs(codec, views, labels, Path(folder) / "records")
    if arguments.json:
        print(json.dumps(results, indent=1))
        return
    columns = {
        "bytes": "bytes a view",
        "fixed": "of it fixed",
        "entropy": "entropy",
        **{name: f"error {name}" for name in _LOSSES},
    }
    columns |= {"encode": "encode rows/s", "load": "load rows/s", "decode": "decode rows/s"}
    table = Table("codec", *columns.values())
    for name, result in results.items():
        cells = []
        for column in columns:
            value = result[column]
            decimals = 3 if column in _LOSSES else 2 if column in ("bytes", "fixed", "entropy") else 0
            cells.append("-" if value is None else f"{value:,.{decimals}f}")
        table.add_row(name, *cells)
    Console(width=150, highlight=False).print(table)


if __name__ == "__main__":
    main()
