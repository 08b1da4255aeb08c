"""The order of an epoch that goes on with another number of ranks."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import placed

from gdkd_cache.data.order import Stretch, epoch_requests
from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import UsageError

_STRETCHES = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(0, 5)), max_size=4)


def _rows(*asked: Any, **more: Any) -> list[list[int]]:
    return [request.rows.tolist() for request in epoch_requests(*asked, **more)]


def _flat(parts: Iterable[list[list[int]]]) -> list[int]:
    return [row for part in parts for batch in part for row in batch]


def _drawn(stretches: list[Stretch], ranks: int, asked: dict[str, Any], source: Any) -> list[int]:
    """Rows in the order that they come: of each stretch, then all that are left."""
    seen: list[int] = []
    for position, (world_size, batch_size, batches) in enumerate(stretches):
        asked |= {"batch_size": batch_size, "done": stretches[:position]}
        seen += _flat(_rows(source, 0, part=(rank, world_size), **asked)[:batches] for rank in range(world_size))
    left = len(source) - len(seen)
    asked |= {"batch_size": 2, "done": stretches}
    parts = [_rows(source, 0, part=(rank, ranks), **asked) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1 or left < ranks
    return seen + _flat(parts)


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    stretches=_STRETCHES,
    ranks=st.integers(1, 4),
    epoch=st.integers(0, 2),
    shuffle=st.booleans(),
)
@pytest.mark.parametrize("sharded", [True, False])
def test_every_row_once_whatever_the_stretches(
    sharded: bool, sizes: list[int], stretches: list[Stretch], ranks: int, epoch: int, shuffle: bool
) -> None:
    starts = np.cumsum([0, *sizes])
    if starts[-1] < 4:
        return
    source = placed(starts)
    if not sharded:
        count = int(starts[-1])
        images = np.zeros((count, 3, 1, 1), np.uint8)
        source = ArraySource(name="held", images=images, labels=source.labels, keys=source.keys, classes=source.classes)
    drawn = _drawn(stretches, ranks, {"epoch": epoch, "seed": 1, "shuffle": shuffle}, source)
    assert sorted(drawn) == [*range(starts[-1])]


@pytest.mark.parametrize(("before", "after"), [((1, 6), (2, 3)), ((2, 3), (1, 6)), ((3, 4), (2, 6))])
@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_ranks_come_and_go(before: tuple[int, int], after: tuple[int, int], steps: int) -> None:
    """As long as a step has as many rows of all ranks, an epoch has no more steps than before but one."""
    source, asked = placed(np.array([0, 13, 14, 40])), {"epoch": 1, "seed": 5}
    done = [(*before, steps)]
    taken = [
        _rows(source, 0, part=(rank, before[0]), batch_size=before[1], **asked)[:steps] for rank in range(before[0])
    ]
    left = [
        _rows(source, 0, part=(rank, after[0]), batch_size=after[1], done=done, **asked) for rank in range(after[0])
    ]
    assert sorted(_flat(taken + left)) == [*range(40)]
    whole = len(_rows(source, 0, part=(0, before[0]), batch_size=before[1], **asked))
    assert whole <= steps + len(left[0]) <= whole + 1


def test_what_is_left_is_split_anew() -> None:
    """Of twelve rows on two ranks, after one batch of two each: by hand."""
    source, asked = placed(np.array([0, 12])), {"epoch": 0, "shuffle": False}
    one = [(2, 2, 1)]
    assert _rows(source, 0, part=(0, 1), batch_size=4, done=one, **asked) == [[2, 3, 4, 5], [8, 9, 10, 11]]
    assert _rows(source, 0, part=(1, 2), batch_size=4, done=one, **asked) == [[8, 9, 10, 11]]
    assert _rows(source, 0, part=(1, 2), batch_size=2, done=one, **asked) == [[8, 9], [10, 11]]
    two = [*one, (1, 4, 1)]
    assert [_rows(source, 0, part=(rank, 3), batch_size=3, done=two, **asked) for rank in range(3)] == [
        [[8, 9]],
        [[10]],
        [[11]],
    ]


@settings(deadline=None, max_examples=30)
@given(count=st.integers(5, 60), ranks=st.integers(1, 5), batch_size=st.integers(1, 7), data=st.data())
def test_the_same_split_goes_on(count: int, ranks: int, batch_size: int, data: st.DataObject) -> None:
    """Stretches with the split of now are batches left out, in one piece or several."""
    source, rank = placed(np.array([0, count])), data.draw(st.integers(0, ranks - 1))
    asked: dict[str, Any] = {"epoch": 2, "batch_size": batch_size, "part": (rank, ranks)}
    whole = _rows(source, 0, **asked)
    first, second = data.draw(st.integers(0, len(whole))), data.draw(st.integers(0, 3))
    split = (ranks, batch_size)
    assert _rows(source, 0, done=[(*split, first)], **asked) == whole[first:]
    assert _rows(source, 0, done=[(*split, first), (*split, second)], **asked) == whole[first + second :]
    assert _rows(source, 0, done=[(*split, second)], first_batch=first, **asked) == whole[first + second :]


@pytest.mark.parametrize("stretch", [(0, 2, 1), (1, 0, 1), (1, 2, -1), (4, 2, 1)])
def test_wrong_stretches_are_refused(stretch: Stretch) -> None:
    with pytest.raises(UsageError, match="done has"):
        epoch_requests(placed(np.array([0, 3])), 0, epoch=0, batch_size=2, done=[stretch])
