"""Bytes against gradient error: whole caches on disk beside the record layouts of other tools."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gdkd_cache as gc
from benches.peers import layouts
from benches.timing import Bench, Figure
from gdkd_cache.codec.base import Codec
from gdkd_cache.codec.fidelity import gradient_error
from gdkd_cache.codec.transform.codec import TransformCodec
from gdkd_cache.losses.base import Loss
from gdkd_cache.losses.partition import top_classes
from gdkd_cache.terminal import say

_LOSSES = ("gdkd:temperature=4", "gdkd:temperature=1,w0=0.5,w2=1")
_TARGETS = (0.02, 0.03, 0.05, 0.1, 0.17, 0.3)
_LARGE = 1_281_167 * 40
"""Rows times views of ImageNet in 40 epochs: what tables are spread over in an amortised figure."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One way to keep the logits.

    Attributes:
        name: which.
        error: its gradient error over all views and rows.
        bytes: a view, of everything on disk.
        amortised: the same with the tables of a codec spread over 1.28 M rows in 40 views, keys and labels over 40.
        entropy: order-0, of the integers that are stored; None where nothing is quantised.
    """

    name: str
    error: float
    bytes: float
    amortised: float
    entropy: float | None = None


def size(bench: Bench) -> Iterator[Figure]:
    """Bytes a view at the gradient error of each other layout, against that layout's bytes."""
    logits, labels = _logits(bench)
    full = torch.from_numpy(logits.astype(np.float32)).flatten(0, 1)
    their_labels = torch.from_numpy(labels).repeat(len(logits))
    top = top_classes(full, 5)
    for spec in _LOSSES[:1] if bench.smoke else _LOSSES:
        loss = gc.loss(spec)
        targets = _TARGETS[3:5] if bench.smoke else _TARGETS
        ours = [_ours(bench.folder / f"{spec}-{target}", loss, logits, labels, fidelity=target) for target in targets]
        named = [
            _ours(bench.folder / f"{spec}-{codec}", loss, logits, labels, codec=codec) for codec in ("topk", "dense")
        ]
        theirs = []
        for name, layout in layouts(full.shape[1]).items():
            num_bytes, decoded = layout(full)
            error = gradient_error(loss, full, decoded, their_labels, top)
            theirs.append(Point(name=name, error=error, bytes=num_bytes / len(full), amortised=num_bytes / len(full)))
        _tell(spec, [*ours, *named], theirs)
        if bench.drawings is not None:
            _draw(bench.drawings / f"size-{full.shape[1]}-{loss.temperature:g}.svg", spec, ours, theirs)
        for point in theirs:
            yield Figure(
                what=f"bytes at the error of {point.name}, {spec}, C={full.shape[1]}",
                against=point.name,
                ratios=[_bytes_at(ours, point.error) / point.bytes],
                goal="<= 1",
            )


def _logits(bench: Bench) -> tuple[np.ndarray, np.ndarray]:
    """Logits [view, row, class] and labels [row]: given ones, or such as a network of low rank would say."""
    if bench.logits is not None:
        with np.load(bench.logits, allow_pickle=False) as file:
            return file["teacher"], file["label"].astype(np.int64)
    rng, num_classes = np.random.default_rng(0), 20 if bench.smoke else 100
    labels = rng.integers(0, num_classes, 500 if bench.smoke else 4000)
    means = rng.normal(size=(num_classes, num_classes)) + 6 * np.eye(num_classes)
    mix = rng.normal(size=(8, num_classes)) * 2
    noise = rng.normal(size=(2, len(labels), 8)) @ mix + 0.3 * rng.normal(size=(2, len(labels), num_classes))
    return (means[labels] + noise).astype(np.float16), labels


def _ours(folder: Path, loss: Loss, logits: np.ndarray, labels: np.ndarray, **asked: Any) -> Point:
    """A cache of the logits, packed as asked."""
    keys = [f"{row:06d}" for row in range(len(labels))]
    manifest = gc.pack(folder, logits, keys=keys, labels=labels, losses=(loss,), **asked)
    cache, rows = gc.open_cache(folder), np.arange(len(labels))
    decoded = [cache.view(number).decode(rows, temperature=loss.temperature) for number in range(cache.num_views)]
    full = torch.from_numpy(logits.astype(np.float32)).flatten(0, 1)
    top = torch.cat([one.top.classes for one in decoded])
    assert torch.equal(top, top_classes(full, top.shape[1])), "a partition differs from the full logits'"
    their_labels = torch.from_numpy(labels).repeat(len(logits))
    error = gradient_error(loss, full, torch.cat([one.logits for one in decoded]), their_labels, top)
    sizes = {name: record.size for name, record in manifest.objects.items() if "/c/" in name}
    views = sum(number for name, number in sizes.items() if name.count("/") > 2)
    shared = sum(number for name, number in sizes.items() if name.startswith(("keys/", "labels/")))
    tables = sum(number for name, number in sizes.items() if name.startswith("tables/"))
    return Point(
        name=", ".join([cache.codec.name, *(f"{name} {value}" for name, value in asked.items() if name != "codec")]),
        error=error,
        bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / len(full),
        amortised=views / len(full) + shared / len(labels) / 40 + tables / _LARGE,
        entropy=_entropy(cache.codec, logits, labels),
    )


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


def _bytes_at(points: Sequence[Point], error: float) -> float:
    """Bytes at some error, between the points in the logarithms; at the ends, those of the nearest."""
    ordered = sorted(points, key=lambda point: point.error)
    errors, sizes = (np.log([getattr(point, name) for point in ordered]) for name in ("error", "bytes"))
    return float(np.exp(np.interp(np.log(error), errors, sizes)))


def _tell(spec: str, ours: Sequence[Point], theirs: Sequence[Point]) -> None:
    say(f"{spec:40} {'error':>8} {'bytes a view':>14} {'amortised':>10} {'entropy':>8}", error=True)
    for point in [*ours, *sorted(theirs, key=lambda point: point.error)]:
        entropy = "" if point.entropy is None else f"{point.entropy:.1f}"
        sizes = f"{point.bytes:14.1f} {point.amortised:10.1f} {entropy:>8}"
        say(f"{point.name:40} {point.error:8.3f} {sizes}", error=True)


def _draw(path: Path, spec: str, ours: Sequence[Point], theirs: Sequence[Point]) -> None:
    from matplotlib.figure import Figure as Drawing

    axes = (drawing := Drawing((7, 4.5), layout="constrained")).subplots()
    ordered = sorted(ours, key=lambda point: point.error)
    axes.plot([one.error for one in ordered], [one.bytes for one in ordered], "o-", label="gdkd-cache, whole caches")
    axes.plot([one.error for one in ordered], [one.amortised for one in ordered], ".--", label="gdkd-cache, amortised")
    for point in theirs:
        axes.plot(point.error, point.bytes, "s", color="tab:gray", markersize=4)
        axes.annotate(point.name, (point.error, point.bytes), fontsize=7, xytext=(3, 3), textcoords="offset points")
    axes.set(xscale="log", yscale="log", xlabel="gradient error", ylabel="bytes a view", title=spec)
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, metadata={"Date": None})
