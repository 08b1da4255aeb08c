"""The work of a build: views to the teacher, its logits to columns, columns to committed shards."""

import itertools
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gdkd_cache.codec.columns import Codec
from gdkd_cache.codec.fidelity import ENCODE_ROWS
from gdkd_cache.data.loader import ViewLoader
from gdkd_cache.data.targets import ClassTargets
from gdkd_cache.data.views import VIEWS_AT_ONCE, ViewBatch, ViewRenderer, ViewRequest, requests_for
from gdkd_cache.errors import ModelError
from gdkd_cache.models.network import Network
from gdkd_cache.store.layout import PROBE

Commit = Callable[[int, int, dict[str, np.ndarray]], None]
"""Takes view, shard and the columns by name, each [row, ...]."""

ROWS_AT_ONCE = 64
"""Rows a request of images that are decoded: 8 views of 224x224 are 77 MB."""

_MOST_WAITING = 4


def finite_logits(teacher: Network, pixels: Tensor, rows: np.ndarray, keys: Sequence[str]) -> Tensor:
    """The teacher's logits of uint8 views, float32 [n, class] on its device.

    Raises:
        ModelError: NaN or infinity; it names the key.
    """
    logits = teacher.logits(pixels)
    finite = logits.isfinite().all(-1)
    if not finite.all():
        key = keys[int(rows[int(finite.logical_not().nonzero()[0])])]
        raise ModelError(f"the teacher gives NaN or infinity for {key!r}; check its weights and precision")
    return logits


@dataclass(frozen=True)
class Work:
    """Shards of several views over one range of rows, rendered together so that each image is decoded once."""

    views: tuple[int, ...]
    shard: int
    rows: range


def grouped(units: Sequence[tuple[int, int, range]], *, in_memory: bool, num_ranks: int = 1) -> list[Work]:
    """Shards, as (view, shard, rows), in groups that are rendered together, at least two for each of several ranks.

    Images in memory are not decoded, and so go one view at a time.
    """
    views_at_once = 1 if in_memory else VIEWS_AT_ONCE
    if num_ranks > 1:
        views_at_once = max(1, min(views_at_once, len(units) // (2 * num_ranks)))
    groups: dict[tuple[int, int], list[tuple[int, int, range]]] = {}
    for unit in units:
        groups.setdefault((unit[0] // views_at_once, unit[1]), []).append(unit)
    return [Work(tuple(view for view, _, _ in group), group[0][1], group[0][2]) for group in groups.values()]


@dataclass(frozen=True)
class _Said:
    """What the teacher said about one batch; its pixels are gone."""

    logits: Tensor
    labels: Tensor
    probes: np.ndarray


def compute_shards(
    batch_size: int,
    work: Iterable[Work],
    renderer: ViewRenderer,
    num_workers: int,
    teacher: Network,
    codec: Codec,
    commit: Commit,
    keys: Sequence[str],
    advance: Callable[[int], None],
) -> None:
    """Render, infer, encode and commit shards; one thread encodes, compresses and writes meanwhile.

    Args:
        batch_size: rows the teacher sees at once.
        work: the shards; each is asked for only when its rendering is about to begin.
        renderer, num_workers: what renders them, and in how many processes.
        teacher, codec: what is kept, and how.
        commit: takes view, shard and the columns by name, each [row, ...].
        keys: of the source, for messages.
        advance: called with the number of views that were seen by the teacher.

    Raises:
        SourceError, ModelError, OSError: as `build`.
    """
    loader = ViewLoader(renderer, num_workers=num_workers, pin_memory=teacher.device.type == "cuda")
    # Batches are cut inside a shard, at places that do not depend on what was committed before.
    ahead, cuts = itertools.tee(
        (unit, batch) for unit in work for batch in requests_for(unit.views, np.array(unit.rows), batch_size)
    )
    part_size = batch_size if renderer.in_memory else ROWS_AT_ONCE
    batches = loader.stream(part for _, batch in ahead for part in requests_for(batch.views, batch.rows, part_size))
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode-and-write") as executor:
        waiting: deque[Future[Any]] = deque()

        def submit(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
            waiting.append(executor.submit(function, *arguments))
            while len(waiting) > _MOST_WAITING:  # memory stays bounded, and errors surface
                waiting.popleft().result()
            return waiting[-1]

        parts: dict[int, list[Future[dict[str, np.ndarray]]]] = defaultdict(list)
        said: dict[int, list[_Said]] = defaultdict(list)
        for unit, batch in cuts:
            for view, rendered in _gathered(batches, batch).items():
                logits = finite_logits(teacher, rendered.pixels, batch.rows, keys)
                assert rendered.probes is not None
                said[view].append(_Said(logits, rendered.targets.labels, rendered.probes))
                advance(len(batch.rows))
                finished = batch.rows[-1] == unit.rows[-1]
                if finished or sum(len(one.labels) for one in said[view]) >= ENCODE_ROWS:
                    parts[view].append(submit(_encode, codec, said.pop(view)))
                if finished:
                    submit(_commit, commit, view, unit.shard, parts.pop(view))
        while waiting:
            waiting.popleft().result()


def _gathered(batches: Iterator[ViewBatch], wanted: ViewRequest) -> dict[int, ViewBatch]:
    """One batch a view, put together from the parts that were rendered."""
    parts: dict[int, list[ViewBatch]] = {view: [] for view in wanted.views}
    while sum(len(part.rows) for part in parts[wanted.views[-1]]) < len(wanted.rows):
        batch = next(batches)
        parts[batch.view].append(batch)
    return {view: _joined(own) for view, own in parts.items()}


def _joined(parts: list[ViewBatch]) -> ViewBatch:
    if len(parts) == 1:
        return parts[0]
    return replace(
        parts[0],
        rows=np.concatenate([part.rows for part in parts]),
        pixels=torch.cat([part.pixels for part in parts]),
        targets=ClassTargets.joined([part.targets for part in parts]),
        probes=np.concatenate([part.probes for part in parts if part.probes is not None]),
    )


def _encode(codec: Codec, said: list[_Said]) -> dict[str, np.ndarray]:
    """The columns of some batches, on the teacher's device until they are small."""
    logits = torch.cat([one.logits for one in said])
    labels = torch.cat([one.labels for one in said]).to(logits.device)
    columns = {name: column.cpu().numpy() for name, column in codec.encode(logits, labels).items()}
    return columns | {PROBE: np.concatenate([one.probes for one in said])}


def _commit(commit: Commit, view: int, shard: int, parts: list[Future[dict[str, np.ndarray]]]) -> None:
    pieces = [part.result() for part in parts]
    commit(view, shard, {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]})
