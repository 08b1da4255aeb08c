"""The order of an epoch; images in shards are read nearly in sequence.

Nothing is queued or remembered: an epoch's order is a function of (seed, epoch), so that every row comes exactly once
for any number of workers and ranks, and an epoch can go on from any batch.
"""

import numpy as np
import torch

from gdkd_cache.data.source import FullSource
from gdkd_cache.data.views import ViewRequest, requests_for
from gdkd_cache.errors import UsageError
from gdkd_cache.seeding import draw, permutation, streams

BUFFER_ROWS = 8192
"""How far shuffling moves a row at most from its place in its shard: what is read at one time lies close together."""


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

    Raises:
        UsageError: a number out of range.
    """
    if part is None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        part = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
    rank, world_size = part
    if batch_size < 1 or epoch < 0 or first_batch < 0:
        raise UsageError(f"batch_size, epoch, first_batch are {batch_size}, {epoch}, {first_batch}; at least 1, 0, 0")
    if not 0 <= rank < world_size <= len(source):
        raise UsageError(f"part is {part}; rank must be below the world size, and that at most {len(source)} rows")
    order = shuffled_rows(source, seed, epoch) if shuffle else np.arange(len(source))
    parts = np.array_split(order, world_size)
    requests = requests_for(view, parts[rank], batch_size)
    # A part may have a row less than the first, and so a full batch less: then its last one is halved.
    if len(requests) * batch_size < len(parts[0]) and len(requests[-1].rows) > 1:
        *requests, last = requests
        requests += requests_for(view, last.rows, -(-len(last.rows) // 2))
    return requests[first_batch:]
