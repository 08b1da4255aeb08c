"""The order of an epoch; images in shards are read nearly in sequence.

Nothing is queued or remembered: an epoch's order is a function of (seed, epoch), so that every row comes exactly once
for any number of workers and ranks, and an epoch can go on from any batch, also with another number of ranks.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from gdkd_cache.data.source import FullSource
from gdkd_cache.data.views import ViewRequest, requests_for
from gdkd_cache.errors import UsageError
from gdkd_cache.seeding import draw, permutation, streams

BUFFER_ROWS = 8192
"""How far shuffling moves a row at most from its place in its shard: what is read at one time lies close together."""

Stretch = tuple[int, int, int]
"""What was done of an epoch with one number of ranks: (world size, rows a batch of a rank, batches that each took)."""


def shuffled_rows(source: FullSource, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch, from (seed, epoch): int64 [row], every row of the source once.

    Images in shards come shard by shard in random order, each row moved back by a random number of places below
    `BUFFER_ROWS`, as a shuffle buffer does; others are permuted freely.
    """
    starts = source.shard_starts
    if starts is None:
        return permutation(seed, "order", epoch, len(source))
    shards = np.split(np.arange(len(source)), starts[1:-1])
    rows = np.concatenate([shards[shard] for shard in permutation(seed, "shards", epoch, len(shards))])
    state = streams(seed, "order", epoch, np.arange(len(rows), dtype=np.uint64))
    # What a shuffle buffer of so many rows does, without one.
    delay = (draw(state, 0) >> np.uint64(11)).astype(np.float64) * (2.0**-53 * BUFFER_ROWS)
    return rows[np.argsort(np.arange(len(rows)) + delay, kind="stable")]


def epoch_requests(
    source: FullSource,
    view: int,
    *,
    epoch: int,
    batch_size: int,
    seed: int = 0,
    shuffle: bool = True,
    part: tuple[int, int] | None = None,
    first_batch: int = 0,
    done: Sequence[Stretch] = (),
) -> list[ViewRequest]:
    """The batches of an epoch, or of one rank's part of it.

    Args:
        source: whose rows.
        view: what they are rendered as.
        epoch, seed: decide the order.
        batch_size: rows a batch; the last one may be smaller.
        shuffle: draw the order; otherwise the source's.
        part: (rank, world size): every row is in exactly one part, and all parts have as many batches if
            `batch_size` is at least 2. None takes torch.distributed's where it is initialised, else everything.
        first_batch: leave out the batches before this one, to go on with an epoch that was interrupted.
        done: the stretches of this epoch before that, in order, where it went with other numbers of ranks: what each
            rank left of its part is put together in the order of the ranks, and split anew. Where fewer rows than
            ranks are left, the last ranks have no batch.

    Raises:
        UsageError: a number out of range.
    """
    rank, world_size = part = this_part(part)
    if batch_size < 1 or epoch < 0 or first_batch < 0:
        raise UsageError(f"batch_size, epoch, first_batch are {batch_size}, {epoch}, {first_batch}; at least 1, 0, 0")
    if not 0 <= rank < world_size <= len(source):
        raise UsageError(f"part is {part}; rank must be below the world size, and that at most {len(source)} rows")
    for stretch in done:
        if not (1 <= stretch[0] <= len(source) and stretch[1] >= 1 and stretch[2] >= 0):
            raise UsageError(
                f"done has {tuple(stretch)}; it must be (world size, batch size, batches), at least 1, 1, 0, of at "
                f"most {len(source)} ranks"
            )
    order = shuffled_rows(source, seed, epoch) if shuffle else np.arange(len(source))
    stretches = [*done, (world_size, batch_size, first_batch)]
    # Stretches in a row with the same split are one: the later begins where the earlier ended.
    splits = [(split, sum(n for *_, n in group)) for split, group in itertools.groupby(stretches, lambda one: one[:2])]
    *earlier, (_, first) = splits
    for (ranks, rows), batches in earlier:
        left = [one.rows for part in range(ranks) for one in _of_part(order, view, (part, ranks), rows)[batches:]]
        order = np.concatenate([order[:0], *left])
    return _of_part(order, view, (rank, world_size), batch_size)[first:]


def this_part(part: tuple[int, int] | None) -> tuple[int, int]:
    """(rank, world size): as given, or torch.distributed's where it is initialised, else everything."""
    if part is not None:
        return part
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)


def _of_part(order: np.ndarray, view: int, part: tuple[int, int], batch_size: int) -> list[ViewRequest]:
    """One part's batches of rows in this order, int64 [row]; all parts have as many, if they have any rows."""
    rank, world_size = part
    parts = np.array_split(order, world_size)
    requests = requests_for(view, parts[rank], batch_size)
    # A part may have a row less than the first, and so a full batch less: then its last one is halved.
    if requests and len(requests) * batch_size < len(parts[0]) and len(requests[-1].rows) > 1:
        *requests, last = requests
        requests += requests_for(view, last.rows, -(-len(last.rows) // 2))
    return requests
