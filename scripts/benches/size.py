"""Bytes against gradient error: whole caches on disk beside the record layouts of other tools."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import gdkd_cache as gc
from benches.frontier import Frontier, Point, draw
from benches.outputs import logits_in, logits_of
from benches.peers import layouts
from benches.timing import Bench, Figure
from gdkd_cache.cache.cache import Cache
from gdkd_cache.codec.base import Codec
from gdkd_cache.codec.calibration import Calibration
from gdkd_cache.codec.fidelity import gradient_error
from gdkd_cache.codec.transform.codec import TransformCodec
from gdkd_cache.losses.base import Loss
from gdkd_cache.losses.partition import top_classes
from gdkd_cache.store.manifest import Manifest
from gdkd_cache.terminal import say

_LOSSES = ("gdkd:temperature=4", "gdkd:temperature=1,w0=0.5,w2=1")
_TARGETS = (0.02, 0.03, 0.05, 0.1, 0.17, 0.3)
_MANY_CLASSES, _FEWER_TARGETS = 500, (0.02, 0.05, 0.1, 0.17, 0.3)  # a cache takes a minute
_SAMPLED = 4096  # rows are enough for an entropy, and encoding them again takes as long as encoding them
_SMOKE_TARGETS = (0.1, 0.17)
_LARGE = 1_281_167 * 40
"""Rows times views of ImageNet in 40 epochs: what tables are spread over in an amortised figure."""


def size(bench: Bench) -> Iterator[Figure]:
    """Bytes of the smallest cache that errs no more than another layout, against that layout's bytes."""
    for name, logits, labels in _data(bench):
        folder, num_classes = bench.folder / name, logits.shape[-1]
        losses = _LOSSES[:1] if bench.smoke else _LOSSES
        frontiers = [_frontier(bench, folder / f"{number}", loss, logits, labels) for number, loss in enumerate(losses)]
        title = f"{name}: {' x '.join(map(str, logits.shape[:2]))} rows of {num_classes} classes"
        tables = [line for frontier in frontiers for line in ("", *frontier.table())]
        say(title, *tables, error=True)
        if bench.drawings is not None:
            draw(bench.drawings / f"size-{name}.svg", title, frontiers)
            (bench.drawings / f"size-{name}.md").write_text("\n".join([title, *tables, ""]))
        for frontier in frontiers:
            for point in frontier.theirs:
                yield Figure(
                    what=f"bytes of {frontier.least(point.error).name}, {frontier.loss}, {name}",
                    against=point.name,
                    ratios=[frontier.least(point.error).bytes / point.bytes],
                    goal="<= 1",
                )


def _data(bench: Bench) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """What the data are called, logits [view, row, class] and labels [row]: given ones, or what a network might say."""
    for spec in bench.logits:
        yield logits_in(spec)
    if not bench.logits:
        for num_classes in (20,) if bench.smoke else (100, 1000):
            logits, labels = logits_of(500 if bench.smoke else 8000, num_classes)
            yield f"made-{num_classes}", logits[None], labels


def _frontier(bench: Bench, folder: Path, spec: str, logits: np.ndarray, labels: np.ndarray) -> Frontier:
    loss, num_classes = gc.loss(spec), logits.shape[-1]
    usual = _SMOKE_TARGETS if bench.smoke else _FEWER_TARGETS if num_classes >= _MANY_CLASSES else _TARGETS
    targets = bench.targets or usual
    ours = [_ours(folder / f"{target}", loss, logits, labels, fidelity=target) for target in targets]
    others = [_ours(folder / codec[:5], loss, logits, labels, codec=codec) for codec in ("topk:k=8", "dense")]
    full = torch.from_numpy(logits.astype(np.float32)).flatten(0, 1)
    their_labels, top = torch.from_numpy(labels).repeat(len(logits)), top_classes(full, 5)
    theirs = []
    for name, layout in layouts(num_classes).items():
        num_bytes, decoded = layout(full)
        error = gradient_error(loss, full, decoded, their_labels, top)
        theirs.append(Point(name=name, error=error, bytes=num_bytes / len(full), amortised=num_bytes / len(full)))
    return Frontier(loss=spec, ours=ours, others=others, theirs=theirs)


class _OfMany(Calibration):
    """Rows of a large cache: a codec may take larger tables, as so many share them."""

    def __init__(self, *given: Any, stored_rows: int, **named: Any) -> None:
        super().__init__(*given, stored_rows=_LARGE, **named)


def _ours(folder: Path, loss: Loss, logits: np.ndarray, labels: np.ndarray, **asked: Any) -> Point:
    """A cache of the logits, packed as asked; and of one whose codec is fitted as for many rows, what is amortised."""
    start = time.perf_counter()
    cache, error = _packed(folder / "whole", loss, logits, labels, asked)
    with patch("gdkd_cache.building.sampling.Calibration", _OfMany):
        part, _ = _packed(folder / "part", loss, logits, labels, asked)
    num_rows = labels.size * len(logits)
    whole = sum(path.stat().st_size for path in (folder / "whole").rglob("*") if path.is_file())
    views, shared, tables = _sizes(part.manifest)
    kept = f"`topk`, {cache.codec.num_top} classes" if cache.codec.name == "topk" else f"`{cache.codec.name}`"
    point = Point(
        name=", ".join([kept, *(f"target {value}" for name, value in asked.items() if name == "fidelity")]),
        error=error,
        bytes=whole / num_rows,
        amortised=views / num_rows + shared / len(labels) / 40 + tables / _LARGE,
        fixed=(whole - _sizes(cache.manifest)[0]) / num_rows,
        entropy=_entropy(part.codec, logits, labels),
    )
    took = f"{time.perf_counter() - start:.0f} s"
    say(f"size: {loss}: {point.name}: {point.bytes:.1f} bytes a view at {point.error:.3f}, {took}", error=True)
    return point


def _packed(
    folder: Path, loss: Loss, logits: np.ndarray, labels: np.ndarray, asked: dict[str, Any]
) -> tuple[Cache, float]:
    """A cache, read again, and its gradient error over all views and rows."""
    gc.pack(folder, logits, keys=[f"{row:06d}" for row in range(len(labels))], labels=labels, losses=(loss,), **asked)
    cache, rows = gc.open_cache(folder), np.arange(len(labels))
    decoded = [cache.view(number).decode(rows, temperature=loss.temperature) for number in range(cache.num_views)]
    full = torch.from_numpy(logits.astype(np.float32)).flatten(0, 1)
    top = torch.cat([one.top.classes for one in decoded])
    assert torch.equal(top, top_classes(full, top.shape[1])), "a partition differs from the full logits'"
    their_labels = torch.from_numpy(labels).repeat(len(logits))
    return cache, gradient_error(loss, full, torch.cat([one.logits for one in decoded]), their_labels, top)


def _sizes(manifest: Manifest) -> tuple[int, int, int]:
    """Bytes of what grows with the views, of keys and labels, and of the codec's tables."""
    sizes = {name: record.size for name, record in manifest.objects.items() if "/c/" in name}
    views = sum(number for name, number in sizes.items() if name.count("/") > 2)
    shared = sum(number for name, number in sizes.items() if name.startswith(("keys/", "labels/")))
    return views, shared, sum(number for name, number in sizes.items() if name.startswith("tables/"))


def _entropy(codec: Codec, views: np.ndarray, labels: np.ndarray) -> float | None:
    """Empirical order-0 entropy, in bytes a view, of the integers that `transform` stores, each column on its own."""
    if not isinstance(codec, TransformCodec):
        return None
    some = np.arange(len(labels))[:: -(-len(labels) // _SAMPLED)]
    logits = torch.from_numpy(views[0, some].astype(np.float32))
    symbols = codec.quantised(logits, torch.from_numpy(labels[some])).numpy()
    shares = [np.unique(column, return_counts=True)[1] / len(column) for column in symbols.T]
    return -sum(float((share * np.log2(share)).sum()) for share in shares) / 8
