"""The parts of the work: which shards are rendered together, and how logits become committed shards."""

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gdkd_cache.cache.references import ReferenceRows
from gdkd_cache.codec.base import Codec, References
from gdkd_cache.codec.fidelity import encoded_at_once
from gdkd_cache.data.targets import Targets
from gdkd_cache.data.views import VIEWS_AT_ONCE, ViewBatch, ViewRequest
from gdkd_cache.store.cells import ONE_CELL, Cells
from gdkd_cache.store.layout import IMAGE_SIZE, PROBE, SOURCE_CHECK
from gdkd_cache.threads import one_worker

Unit = tuple[int, int, range]
"""View, shard and the shard's rows."""

Commit = Callable[[int, int, dict[str, np.ndarray]], None]
"""Takes view, shard and the columns by name, each [row, ...]."""

Load = Callable[[int, int], Mapping[str, np.ndarray]]
"""Gives the codec's columns of a view and shard that are committed."""

_MOST_WAITING = 4


@dataclass(frozen=True)
class Work:
    """Shards of several views over one range of rows, rendered together so that each image is decoded once."""

    views: tuple[int, ...]
    shard: int
    rows: range


def grouped(units: Sequence[Unit], *, in_memory: bool, num_ranks: int = 1, references: int = 0) -> list[Work]:
    """Shards in groups that are rendered together, at least two for each of several ranks.

    Images in memory are not decoded, and so go one view at a time. Views that predict others come before these, and
    what is predicted from the same rows together.
    """
    views_at_once = 1 if in_memory else VIEWS_AT_ONCE
    if num_ranks > 1:
        views_at_once = max(1, min(views_at_once, len(units) // (2 * num_ranks)))
    groups: dict[tuple[int, int], list[Unit]] = {}
    for unit in units:
        groups.setdefault((unit[0] // views_at_once, unit[1]), []).append(unit)
    works = [Work(tuple(view for view, _, _ in group), group[0][1], group[0][2]) for group in groups.values()]
    return sorted(works, key=lambda work: (work.views[0] >= references, work.shard)) if references else works


def gathered(rendered: Iterator[ViewBatch], wanted: ViewRequest) -> dict[int, ViewBatch]:
    """One batch a view, put together from the parts that were rendered."""
    parts: dict[int, list[ViewBatch]] = {view: [] for view in wanted.views}
    while sum(len(part.rows) for part in parts[wanted.views[-1]]) < len(wanted.rows):
        batch = next(rendered)
        parts[batch.view].append(batch)
    return {view: _joined(own) for view, own in parts.items()}


def _joined(parts: list[ViewBatch]) -> ViewBatch:
    if len(parts) == 1:
        return parts[0]
    return replace(
        parts[0],
        rows=np.concatenate([part.rows for part in parts]),
        pixels=torch.cat([part.pixels for part in parts]),
        targets=Targets.joined([part.targets for part in parts]),
        probes=_concatenated([part.probes for part in parts]),
        source_checks=_concatenated([part.source_checks for part in parts]),
        sizes=_concatenated([part.sizes for part in parts]),
    )


def _concatenated(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    given = [part for part in parts if part is not None]
    return np.concatenate(given) if given else None


@dataclass(frozen=True)
class Said:
    """What the teacher said about a batch of one view, whose pixels are gone: logits, labels and probes, [row, ...].

    With it come the sizes of the decoded images, uint16 [row, 2], and with the first view their checks, uint8 [row, 8].
    """

    logits: Tensor
    labels: Tensor
    probes: np.ndarray
    sizes: np.ndarray
    source_checks: np.ndarray | None = None


class Encoder:
    """Encodes and commits shards in one thread, while the teacher goes on; a context, at whose end all is committed.

    A few tasks wait at most, so that memory stays bounded; what one of them raises surfaces in `add`, `finish` or at
    the end.
    """

    def __init__(
        self,
        codec: Codec,
        commit: Commit,
        references: Callable[[Work], ReferenceRows] | None = None,
        *,
        cells: Cells = ONE_CELL,
        size_view: int | None = None,
    ) -> None:
        """Begin.

        Args:
            codec: what shards are encoded with.
            commit: takes them.
            references: makes what predicts views of a shard, for a codec that has references.
            cells: of a row.
            size_view: the view whose shards bring the sizes of the images; None for none.
        """
        self._codec, self._commit, self._make, self._size_view = codec, commit, references, size_view
        self._cells, self._rows_at_once = cells, encoded_at_once(cells.grid, codec.num_classes)
        self._predicted: tuple[int, ReferenceRows] | None = None  # of one shard at a time
        self._executor = one_worker("encode-and-write")
        self._waiting: deque[Future[Any]] = deque()
        self._said: dict[int, list[Said]] = defaultdict(list)
        self._parts: dict[int, list[Future[dict[str, np.ndarray]]]] = defaultdict(list)
        self._begun: dict[int, int] = defaultdict(int)

    def __enter__(self) -> "Encoder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._executor:
            if error is None:
                self._wait(0)

    def add(self, view: int, work: Work, said: Said) -> None:
        """Take the next batch of a view's current shard."""
        self._said[view].append(said)
        if sum(len(one.labels) for one in self._said[view]) >= self._rows_at_once:
            self._encode(view, work)

    def finish(self, view: int, work: Work) -> None:
        """Commit a view's current shard: it has all its batches."""
        if self._said[view]:
            self._encode(view, work)
        shard = work.shard
        self._begun.pop(view)
        self._waiting.append(self._executor.submit(self._join_and_commit, view, shard, self._parts.pop(view)))
        self._wait(_MOST_WAITING)

    def _references(self, work: Work) -> ReferenceRows | None:
        if not self._codec.num_references or self._make is None:
            return None
        if self._predicted is None or self._predicted[0] != work.shard:
            self._predicted = (work.shard, self._make(work))
        return self._predicted[1]

    def _encode(self, view: int, work: Work) -> None:
        said, first = self._said.pop(view), self._begun[view]
        self._begun[view] += sum(len(one.labels) for one in said)
        part = self._executor.submit(self._columns, view, slice(first, self._begun[view]), self._references(work), said)
        self._parts[view].append(part)
        self._waiting.append(part)
        self._wait(_MOST_WAITING)

    def _join_and_commit(self, view: int, shard: int, parts: Sequence[Future[dict[str, np.ndarray]]]) -> None:
        pieces = [part.result() for part in parts]
        self._commit(view, shard, {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]})

    def _columns(
        self, view: int, part: slice, references: ReferenceRows | None, said: Sequence[Said]
    ) -> dict[str, np.ndarray]:
        """The columns of some batches, a part of a shard's rows, on the teacher's device until they are small."""
        logits = torch.cat([one.logits for one in said])
        labels = torch.cat([one.labels for one in said]).to(logits.device)
        sizes, known = np.concatenate([one.sizes for one in said]), None
        if references is not None:
            references.see(part, sizes)
            known = references.before(view, part)
            known = known and References(*(tensor.to(logits.device) for tensor in known))
        encoded = self._cells.encode(self._codec, logits, labels, known)
        if references is not None:
            references.put(view, part, encoded, known)
        columns = {name: column.cpu().numpy() for name, column in encoded.items()}
        columns[PROBE] = np.concatenate([one.probes for one in said])
        checks = _concatenated([one.source_checks for one in said])
        columns |= {} if checks is None else {SOURCE_CHECK: checks}
        return columns | ({IMAGE_SIZE: sizes} if view == self._size_view else {})

    def _wait(self, most: int) -> None:
        while len(self._waiting) > most:
            self._waiting.popleft().result()
