"""Passes over a cached dataset: an epoch each, which stop at any batch and go on there."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.utilities.data import extract_batch_size
from small import build_small, take

from gdkd_cache import open_cache
from gdkd_cache.cache.batch import TeacherBatch
from gdkd_cache.cache.dataset import CachedDataset
from gdkd_cache.cache.loader import CachedLoader, LoadedBatch
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.source import ArraySource
from gdkd_cache.data.view_numbers import parse_views
from gdkd_cache.errors import MismatchError, UsageError
from gdkd_cache.models.network import Network
from gdkd_cache.training.batches import cached_batches, rendered_batches

_ASKED: dict[str, Any] = {"batch_size": 48, "shuffle": True, "seed": 3}


def _asked(**others: Any) -> dict[str, Any]:
    return _ASKED | others


@pytest.fixture
def data(digits: ArraySource, digits_cache: Path) -> CachedDataset:
    return open_cache(digits_cache).dataset(digits)


def _same(ours: list[LoadedBatch], theirs: list[LoadedBatch]) -> bool:
    """To the bit."""
    same = (
        torch.equal(images, others) and torch.equal(labels, more) and all(map(torch.equal, said[:3], told[:3]))
        for (images, labels, said), (others, more, told) in zip(ours, theirs, strict=True)
    )  # fmt: skip
    return len(ours) == len(theirs) and all(same) and [one[2].view for one in ours] == [one[2].view for one in theirs]


def test_a_second_pass_is_the_next_epoch(data: CachedDataset) -> None:
    loader = data.loader(**_ASKED)
    assert (len(loader), loader.epoch) == (6, 0)
    for epoch in range(3):
        batches = list(loader)
        assert len(batches) == len(loader)
        assert loader.epoch == epoch + 1
        assert {said.view for *_, said in batches} == {epoch % 2}
        assert _same(batches, list(data.loader(epoch, **_ASKED)))
    loader.set_epoch(1)
    assert _same(list(loader), list(data.loader(1, **_ASKED)))
    with pytest.raises(UsageError, match="epoch is -1"):
        loader.set_epoch(-1)


@pytest.mark.parametrize(("given", "workers"), [*((given, 0) for given in range(7)), (4, 2)])
def test_it_goes_on_where_it_stopped(data: CachedDataset, given: int, workers: int) -> None:
    """With the very next batch, then the next epoch; a state is JSON, and at an epoch's end the next one's start."""
    asked = _asked(num_workers=workers)
    whole = [*data.loader(1, **asked), *data.loader(2, **asked)]
    loader = data.loader(1, **asked)
    batches = iter(loader)
    for _ in range(given):
        next(batches)
    state = json.loads(json.dumps(loader.state_dict()))
    assert (state["epoch"], state["batch"]) == ((1, given) if given < 6 else (2, 0))
    other = data.loader(**asked)
    other.load_state_dict(state)
    assert len(other) == 6
    other.set_epoch(state["epoch"])  # as many loops say at each epoch's beginning: it leaves nothing out or in
    assert other.state_dict() == state
    rest = list(other) + (list(other) if given < 6 else [])
    assert _same(rest, whole[given:])


def test_a_pass_that_was_broken_off_begins_anew(data: CachedDataset) -> None:
    loader = data.loader(1, first_batch=2, **_ASKED)
    wanted = list(data.loader(1, **_ASKED))[2:]
    assert (len(loader), loader.state_dict()["batch"]) == (6, 2)
    for _ in zip(range(3), loader, strict=False):
        pass
    assert (loader.epoch, loader.state_dict()["batch"]) == (1, 5)
    assert _same(list(loader), wanted)
    assert loader.epoch == 2
    assert len(list(loader)) == 6


def test_one_pass_at_a_time(data: CachedDataset) -> None:
    """An older iterator gives no batch of neither; one that was made and never asked disturbs nobody."""
    loader = data.loader(**_ASKED)
    ends = [
        lambda: next(iter(loader)),
        lambda: loader.set_epoch(5),
        lambda: loader.load_state_dict(loader.state_dict()),
    ]
    for end in ends:
        older = iter(loader)
        next(older)
        end()
        with pytest.raises(UsageError, match="newer pass"):
            next(older)
    loader.set_epoch(0)
    unasked = iter(loader)
    assert _same(list(loader), list(data.loader(0, **_ASKED)))
    with pytest.raises(UsageError, match="newer pass"):
        next(unasked)
    batches = iter(loader)
    last = [next(batches) for _ in range(6)]
    assert {said.view for *_, said in last} == {1}
    assert [said.view for *_, said in loader] == [0] * 6
    assert next(batches, None) is None  # it was over before


def test_two_loaders_at_a_time(data: CachedDataset) -> None:
    """They go side by side in this process; worker processes serve the newest, and the older one is told."""
    for (ours, *_), (theirs, *_) in zip(data.loader(0, **_ASKED), data.loader(0, **_ASKED), strict=True):
        assert torch.equal(ours, theirs)
    asked = _asked(num_workers=1)
    older = iter(data.loader(0, **asked))
    next(older)
    wanted = list(data.loader(1, **_ASKED))
    assert _same(list(data.loader(1, **asked)), wanted)
    with pytest.raises(UsageError, match="same worker processes"):
        next(older)


def test_other_settings_are_refused(
    tmp_path: Path, digits: ArraySource, digits_cache: Path, data: CachedDataset, weights: Path
) -> None:
    cache = open_cache(digits_cache)
    loaders: dict[str, CachedLoader] = {
        "seed 3, and this loader 4": data.loader(**_asked(seed=4)),
        "shuffle True": data.loader(**_asked(shuffle=False)),
        "48 rows on 1 ranks, and this loader of 32 on 1": data.loader(**_asked(batch_size=32)),
        "views": cache.dataset(digits, views="1").loader(**_ASKED),
        "source": cache.dataset(take(digits, np.arange(200))).loader(**_ASKED),
    }
    state = data.loader(**_ASKED).state_dict()
    for said, loader in loaders.items():
        with pytest.raises(MismatchError, match=said) as caught:
            loader.load_state_dict(state)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="no epoch"):
        data.loader(**_ASKED).load_state_dict({})


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (3, 2)])
def test_other_ranks_take_what_is_left(data: CachedDataset, before: int, after: int) -> None:
    """Every row once an epoch, where a step has as many rows of all ranks together; and the next epoch is whole."""
    loaders = [data.loader(batch_size=48 // before, shuffle=True, part=(rank, before)) for rank in range(before)]
    seen = [said.rows for loader in loaders for *_, said in itertools.islice(loader, 2)]
    states = [loader.state_dict() for loader in loaders]
    assert all(state == states[0] for state in states)
    ends = [data.loader(batch_size=48 // after, shuffle=True, part=(rank, after)) for rank in range(after)]
    for loader in ends:
        loader.load_state_dict(states[0])
        assert len(loader) == 6
        middle = iter(loader)
        seen.append(next(middle)[2].rows)
    again = [loader.state_dict() for loader in ends]
    for rank in range(before):  # and back once more
        loader = data.loader(batch_size=48 // before, shuffle=True, part=(rank, before))
        loader.load_state_dict(again[0])
        seen += [said.rows for *_, said in loader]
        assert (loader.epoch, len(loader)) == (1, 6)
    assert sorted(torch.cat(seen).tolist()) == [*range(256)]


def test_libraries_move_a_batch(data: CachedDataset) -> None:
    """Lightning and Accelerate ask anything for `to`; `view` stays a number."""
    batch: Any = next(iter(data.loader(**_ASKED)))
    movers = [
        lambda: move_data_to_device(batch, torch.device("meta")),
        lambda: send_to_device(batch, torch.device("meta"), non_blocking=True),
        lambda: (*batch[:2], batch[2].to("meta", non_blocking=True)),
    ]
    for move in movers:
        teacher = move()[2]
        assert type(teacher) is TeacherBatch
        assert {tensor.device.type for tensor in teacher[:3]} == {"meta"}
        assert teacher.view == 0
    with pytest.warns(UserWarning, match="batch size we found is 48"):  # of `self.log`, which takes a batch_size
        assert extract_batch_size(batch) == 48


def test_chosen_views_come_in_turn(tmp_path: Path, few: ArraySource, teacher: Network) -> None:
    build_small(tmp_path / "c.zarr", few, teacher, codec="dense", num_views=4, first_view=2)
    cache = open_cache(tmp_path / "c.zarr")
    for views, wanted in (("4-5,2", [4, 5, 2, 4, 5]), (range(3, 5), [3, 4, 3, 4, 3]), (None, [2, 3, 4, 5, 2])):
        data = cache.dataset(few, views=views)
        loader = data.loader(batch_size=64)
        for number in wanted:
            [(*_, said)] = loader
            assert said.view == number
            assert torch.equal(said.logits, cache.view(number).logits(said.rows))
        assert data.view_numbers == tuple(dict.fromkeys(wanted))
    with pytest.raises(UsageError, match=r"view 0 and 1 more of the 4 asked for: not in .*has views 2 to 5"):
        cache.dataset(few, views="0-3")
    with pytest.raises(UsageError, match="no view is asked for"):
        cache.dataset(few, views=[])


def test_views_as_text() -> None:
    assert parse_views("0-19") == tuple(range(20))
    assert parse_views("7, 0-2") == (7, 0, 1, 2)
    for text in ("", "a", "1-", "-1", "3-1", "0-1048576", "1,,2", "0x1", "1.5"):
        with pytest.raises(UsageError, match=r"no view or range.*write such as 0-19"):
            parse_views(text)
    with pytest.raises(UsageError, match="names view 3 twice"):
        parse_views("0-4,3")


def test_the_trainers_batches_name_their_rows(digits: ArraySource, digits_cache: Path) -> None:
    """Rows of the source, whose keys they have; from a cache and without one the same batches, also of what is left."""
    source = take(digits, np.random.default_rng(0).permutation(256)[:100])
    cache = open_cache(digits_cache)
    asked: dict[str, Any] = {"batch_size": 32, "seed": 1, "num_workers": 0, "device": torch.device("cpu")}
    cached = cached_batches(cache.dataset(source, views="1,0"), **asked)
    recipe = open_recipe("crop-flip", 8, 8)
    rendered = rendered_batches(source, recipe, view_seed=0, views=(1, 0), **asked)
    for epoch, done in ((0, ()), (1, ()), (3, [(2, 16, 2)])):
        seen = []
        for ours, theirs in zip(cached(epoch, done), rendered(epoch, done), strict=True):
            assert torch.equal(ours.images, theirs.images)
            assert torch.equal(ours.labels, theirs.labels)
            assert (ours.rows == theirs.rows).all()
            assert ours.rows.dtype == theirs.rows.dtype == np.int64
            assert ours.said is not None
            assert theirs.said is None
            assert ours.said.view == (1, 0)[epoch % 2]
            assert [source.keys[row] for row in ours.rows] == [cache.keys[row] for row in ours.said.rows]
            seen += ours.rows.tolist()
        assert len(set(seen)) == len(seen) == (36 if done else 100)


_SCRIPT = """
import sys
import gdkd_cache as gc

data = gc.open_cache(sys.argv[1]).dataset(gc.open_source(sys.argv[2]))
{guard}
    print("images", sum(len(labels) for _, labels, _ in data.loader(batch_size=32, num_workers=2)))
"""


@pytest.mark.parametrize(
    ("guard", "way", "said"),
    [
        ("if __name__ == '__main__':", "file", None),
        ("if True:", "file", "`if __name__ == '__main__':`"),
        ("if True:", "input", "<stdin> is no file"),
        ("if True:", "notebook", None),
    ],
)
def test_where_workers_need_a_guard(
    tmp_path: Path, digits_cache: Path, images: Path, guard: str, way: str, said: str | None
) -> None:
    """Notebooks need none; a script that lacks it is told so in a line."""
    script = _SCRIPT.replace("{guard}", guard)
    (tmp_path / "script.py").write_text(script)
    cell = f"exec(compile({script!r}, '<cell>', 'exec'), globals())"  # a kernel's __main__ has no file
    ways = {"file": [str(tmp_path / "script.py")], "input": ["-"], "notebook": ["-c", cell]}
    command = [sys.executable, *ways[way], str(digits_cache), f"wds:{images}/Train-*.tar"]
    given = script if way == "input" else None
    ended = subprocess.run(command, input=given, capture_output=True, text=True, timeout=120, check=False)
    if said is None:
        assert (ended.returncode, ended.stdout) == (0, "images 256\n")
        return
    assert ended.returncode == 1
    *_, line = ended.stderr.splitlines()
    assert said in line
    assert "num_workers=0" in line
    assert ended.stderr.count("Traceback") == 1  # this process's own
