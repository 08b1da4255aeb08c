"""`select`: each method's rule on a case whose answer is known, and training on what was chosen."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gdkd_cache_cli.main import main

import gdkd_cache as gc
from gdkd_cache.data.subset import subset
from gdkd_cache.errors import MismatchError, UsageError
from gdkd_cache.selection.select import select

KEYS = [f"row{number}" for number in range(8)]
LABELS = [0, 1, 2, 0, 1, 2, 0, 1]


def packed(path: Path, probabilities: np.ndarray, labels: list[int] = LABELS, keys: list[str] = KEYS) -> gc.Cache:
    """A cache of exactly these probabilities, [view, row, class]."""
    gc.pack(
        path,
        np.log(probabilities).astype(np.float32),
        keys=keys,
        labels=labels,
        codec="dense:dtype=float32,k=1",
        losses=["kd"],
    )
    return gc.open_cache(path)


def points(*rows: tuple[float, float, float]) -> np.ndarray:
    """Probabilities [1, row, class], of rows that need not sum to one."""
    p = np.array([rows], np.float64)
    return p / p.sum(-1, keepdims=True)


@pytest.fixture
def views(tmp_path: Path) -> gc.Cache:
    """Two views: row 3 is the least sure in both, rows 5 and 6 are sure of different classes in each."""
    sure, other, even = (0.98, 0.01, 0.01), (0.01, 0.98, 0.01), (1.0, 1.0, 1.0)
    half, most = (0.6, 0.39, 0.01), (0.8, 0.19, 0.01)
    one = points(sure, sure, half, even, other, sure, other, most)
    two = points(sure, sure, half, even, other, other, most, most)
    return packed(tmp_path / "views.zarr", np.concatenate([one, two]))


def test_entropy_takes_the_least_sure(views: gc.Cache) -> None:
    assert select(views, "entropy", 2) == ["row3", "row2"]


def test_entropy_at_a_temperature_of_chosen_views(tmp_path: Path) -> None:
    # Of z = log p, T = 2 takes the root of p: (.90, .09, .01) becomes less even than (.34, .33, .33) whatever T.
    p = np.concatenate([points(*[(0.9, 0.09, 0.01)] * 8), points(*[(0.5, 0.5, 1e-9)] * 4, *[(0.34, 0.33, 0.33)] * 4)])
    cache = packed(tmp_path / "c.zarr", p)
    assert select(cache, "entropy:temperature=2", 2, views="1") == ["row4", "row5"]
    assert select(cache, "entropy", 2, views="0") == ["row0", "row1"]  # all equal: the lower row


def test_disagreement_takes_rows_whose_views_differ(views: gc.Cache) -> None:
    # Row 5 is class 0 and then 1, row 6 class 1 and then 0 less surely; all others are said twice the same.
    assert select(views, "disagreement", 2) == ["row5", "row6"]


def test_pcoreset_is_farthest_first(tmp_path: Path) -> None:
    # On the line from class 0 to class 1, at 0, .1, .2, .4, .5, .7, .9, 1: mean .475, so row 4; then 0 (as far as 1),
    # then 1, then .2, .7 and ... : computed by hand.
    at = (0.0, 0.1, 0.2, 0.4, 0.5, 0.7, 0.9, 1.0)
    p = np.array([[(1 - x, x, 0) for x in at]]) * (1 - 3e-6) + 1e-6
    chosen = select(packed(tmp_path / "line.zarr", p), "pcoreset", 8)
    assert chosen[:3] == ["row4", "row0", "row7"]
    assert set(chosen[3:5]) == {"row2", "row5"}  # .2 from the next
    assert sorted(chosen) == KEYS


def test_pcoreset_of_copies_takes_each_once(tmp_path: Path) -> None:
    cache = packed(tmp_path / "copies.zarr", points(*[(0.5, 0.3, 0.2)] * 8))
    assert sorted(select(cache, "pcoreset", 8)) == KEYS


def test_miniplm_takes_what_the_larger_teacher_knows_better(tmp_path: Path) -> None:
    large = points(*[(0.4, 0.3, 0.3)] * 8)
    large[0, 5], large[0, 2] = (0.05, 0.05, 0.9), (0.2, 0.2, 0.6)
    cache = packed(tmp_path / "large.zarr", large)
    order = [7, 2, 5, 0, 1, 3, 4, 6]  # found by key
    small = points(*[(0.34, 0.33, 0.33)] * 8)
    reference = packed(tmp_path / "small.zarr", small, [LABELS[i] for i in order], [KEYS[i] for i in order])
    assert select(cache, "miniplm", 2, reference=reference) == ["row5", "row2"]


def test_refusals(views: gc.Cache, tmp_path: Path) -> None:
    single = packed(tmp_path / "single.zarr", points(*[(0.4, 0.3, 0.3)] * 8))
    others = packed(tmp_path / "others.zarr", points(*[(0.4, 0.3, 0.3)] * 8), [2, *LABELS[1:]])
    with pytest.raises(UsageError, match=r"keep is 9; .* has 8 rows"):
        select(views, "entropy", 9)
    with pytest.raises(UsageError, match="at least 2 views, and there is 1"):
        select(single, "disagreement", 1)
    with pytest.raises(UsageError, match="miniplm needs the cache of another teacher: give --reference"):
        select(views, "miniplm", 1)
    with pytest.raises(UsageError, match="entropy takes no other cache: leave out --reference"):
        select(views, "entropy", 1, reference=single)
    with pytest.raises(UsageError, match="method is 'best'; it must be one of pcoreset, entropy"):
        select(views, "best", 1)
    with pytest.raises(UsageError, match="temperature"):
        select(views, "entropy:temperature=0", 1)
    with pytest.raises(MismatchError, match=r"has label 2 for row .*row0.*, which has label 0"):
        select(views, "miniplm", 1, reference=others)


def test_command_writes_what_subset_takes(views: gc.Cache, tmp_path: Path) -> None:
    out, runner = tmp_path / "keys.txt", CliRunner()
    command = ["select", str(tmp_path / "views.zarr"), "--method", "entropy", "--keep", "2", "--out", str(out)]
    done = runner.invoke(main, command)
    assert done.exit_code == 0, done.output
    assert out.read_text() == "row3\nrow2\n"
    again = runner.invoke(main, command)
    assert again.exit_code == 1
    assert "exists; name another --out, or add --force" in again.output
    digits = gc.open_source("digits")
    out.write_text("\n".join(digits.keys[row] for row in (9, 4)))
    assert list(subset(digits, str(out)).keys) == [digits.keys[4], digits.keys[9]]
