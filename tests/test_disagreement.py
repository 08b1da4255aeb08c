"""train --views-by disagreement: each image as the view on which student and teacher disagreed most when last shown."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import build_small
from test_resume import _held, _Killed, _killed_at, _options, _same

from gdkd_cache import open_cache
from gdkd_cache.cache import held
from gdkd_cache.cache.batch import TeacherBatch
from gdkd_cache.data.source import ArraySource
from gdkd_cache.data.views import ViewRenderer, ViewRequest
from gdkd_cache.errors import UsageError
from gdkd_cache.models.network import Network
from gdkd_cache.training import feeds
from gdkd_cache.training.disagreement import Disagreement
from gdkd_cache.training.train import Views, train

_NUM_VIEWS = 3


@pytest.fixture(scope="module")
def cache_path(tmp_path_factory: pytest.TempPathFactory, digits: ArraySource, teacher: Network) -> Path:
    path = tmp_path_factory.mktemp("disagreement") / "digits.zarr"
    build_small(path, digits, teacher, codec="dense", num_views=_NUM_VIEWS)
    return path


def _slow(student: torch.Tensor, teacher: torch.Tensor) -> float:
    """KL(teacher || student) of one row, written out in float64."""
    p, q = teacher.double().softmax(-1), student.detach().double().softmax(-1)
    return sum(float(a * (a / b).log()) for a, b in zip(p, q, strict=True))


def test_the_choice_is_that_of_a_slow_reference() -> None:
    """Whatever was last seen of a row in each view counts; equal values go to the first view."""
    generator, views, rows = torch.Generator().manual_seed(0), (4, 2, 7), 6
    disagreement, last = Disagreement(views, rows), dict[tuple[int, int], float]()
    assert disagreement.row_views(2) is None
    for _ in range(5):
        student, teacher = 3 * torch.randn(2, 4, 10, generator=generator)
        there = torch.randperm(rows, generator=generator)[:4]
        shown = torch.tensor(views)[torch.randint(3, (4,), generator=generator)]
        disagreement.see(student, TeacherBatch(teacher, teacher.topk(3).indices, there, shown), there.numpy())
        last |= {
            (view, row): _slow(*both)
            for view, row, *both in zip(shown.tolist(), there.tolist(), student, teacher, strict=True)
        }
    wanted = [max(views, key=lambda view: last.get((view, row), 0.0)) for row in range(rows)]
    chosen = disagreement.row_views(3)
    assert chosen is not None
    assert chosen.tolist() == wanted
    for (view, row), value in last.items():
        assert float(disagreement.table[views.index(view), row]) == pytest.approx(value, rel=1e-4)


def test_pixels_and_logits_are_those_of_each_row_s_view(digits: ArraySource, cache_path: Path) -> None:
    cache = open_cache(cache_path)
    data = cache.dataset(digits)
    row_views = np.random.default_rng(0).integers(_NUM_VIEWS, size=len(data))
    loader = data.loader(4, batch_size=100, shuffle=True, normalize=None, row_views=row_views)
    renderer = ViewRenderer(digits, data.recipe, 0)
    views = [cache.view(number) for number in cache.view_numbers]
    seen: list[int] = []
    for pixels, labels, said in loader:
        assert said.view == pytest.approx(row_views[said.rows])
        for i, row in enumerate(said.rows.tolist()):
            number = int(row_views[row])
            (wanted,) = renderer[ViewRequest((number,), np.array([row]))]
            assert torch.equal(pixels[i], wanted.pixels[0])
            decoded = views[number].decode([row])
            assert torch.equal(said.logits[i], decoded.logits[0])
            assert torch.equal(said.top[i], decoded.top.classes[0])
            assert int(labels[i]) == int(digits.labels[row])
        seen += said.rows.tolist()
    plain = [row for *_, said in data.loader(4, batch_size=100, shuffle=True) for row in said.rows.tolist()]
    assert seen == plain
    assert sorted(seen) == list(range(len(data)))


def test_one_view_in_all_rows_is_that_epoch(digits: ArraySource, cache_path: Path) -> None:
    data = open_cache(cache_path).dataset(digits)
    chosen = data.loader(0, batch_size=100, shuffle=True, row_views=np.zeros(len(data), np.int64))
    for one, other in zip(chosen, data.loader(0, batch_size=100, shuffle=True), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[2].logits, other[2].logits)
        assert one[2].view == other[2].view == 0


def test_rows_without_a_view(digits: ArraySource, cache_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_cache(cache_path).dataset(digits)
    for wrong in (np.full(len(data), 3), np.zeros(len(data) - 1, np.int64)):
        with pytest.raises(UsageError, match="row_views must have one of the views"):
            data.loader(0, batch_size=100, row_views=wrong)
    monkeypatch.setattr(held, "_MOST_BYTES", 3000)
    with pytest.raises(UsageError, match=r"the 3 views of .* GB of memory.*choose fewer with --views"):
        data.loader(0, batch_size=100, row_views=np.zeros(len(data), np.int64))


def _train(out: Path, digits: ArraySource, digits_test: ArraySource, cache_path: Path, **fields: Any) -> None:
    options = _options(out, loss="gdkd:k=2", **({"epochs": 5, "views_by": "disagreement"} | fields))
    train(options, digits, digits_test, cache=open_cache(cache_path))


def test_a_training_shows_what_it_chose(
    tmp_path: Path,
    digits: ArraySource,
    digits_test: ArraySource,
    cache_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Replayed from the student's and teacher's logits alone: each batch's views are the reference's."""
    last, chosen = np.zeros((_NUM_VIEWS, len(digits))), dict[int, np.ndarray]()
    mixed, see = 0, Disagreement.see

    def seen(self: Disagreement, logits: torch.Tensor, said: TeacherBatch, rows: np.ndarray) -> None:
        nonlocal mixed
        shown = np.broadcast_to(np.asarray(said.view), len(rows))
        if epoch() >= _NUM_VIEWS:
            chosen.setdefault(epoch(), last.argmax(0))
            assert shown.tolist() == chosen[epoch()][rows].tolist()
            mixed += len(set(shown.tolist())) > 1
        else:
            assert set(shown.tolist()) == {epoch()}
        for view, row, *both in zip(shown, rows, logits, said.logits, strict=True):
            last[view, row] = _slow(*both)
        steps.append(len(rows))
        see(self, logits, said, rows)

    steps: list[int] = []

    def epoch() -> int:
        return sum(steps) // len(digits)

    monkeypatch.setattr(Disagreement, "see", seen)
    _train(tmp_path / "out", digits, digits_test, cache_path, accumulate=2)
    assert mixed
    lines = _held(tmp_path / "out")[1]
    assert [line.get("view") for line in lines] == [0, 1, 2, None, None]


def test_it_goes_on_to_the_bit(
    tmp_path: Path,
    digits: ArraySource,
    digits_test: ArraySource,
    cache_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped in the first round, and in the midst of epochs whose views were chosen."""

    def run(out: Path) -> None:
        _train(out, digits, digits_test, cache_path)

    run(tmp_path / "whole")
    _train(tmp_path / "turn", digits, digits_test, cache_path, views_by="turn")
    assert _held(tmp_path / "turn")[1][3:] != _held(tmp_path / "whole")[1][3:]
    for steps in ([6], [14], [16], [15, 2, 2]):
        out = tmp_path / "-".join(map(str, steps))
        for step in steps:
            with _killed_at(step, monkeypatch), pytest.raises(_Killed):
                run(out)
        run(out)
        _same(out, tmp_path / "whole")


def test_where_it_cannot_be(
    tmp_path: Path,
    digits: ArraySource,
    digits_test: ArraySource,
    cache_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = _options(tmp_path, views_by="disagreement")
    with pytest.raises(UsageError, match="views_by disagreement chooses among the views of a cache"):
        train(options, digits, digits_test, views=Views())
    monkeypatch.setattr(feeds, "rank_and_size", lambda: (0, 2))
    with pytest.raises(UsageError, match="views_by disagreement remembers what this rank was shown"):
        _train(tmp_path, digits, digits_test, cache_path)
