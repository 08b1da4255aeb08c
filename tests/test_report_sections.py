"""The sections on the teacher and on the paper's figures: what they show is what the cache says."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import build_small, take

from gdkd_cache import open_cache
from gdkd_cache.building.pack import pack
from gdkd_cache.cache.cache import Cache
from gdkd_cache.data.recipes.mixing import Mix
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import UsageError
from gdkd_cache.models.network import Network
from gdkd_cache.report.base import Drawing, Facts, Part, Pictures, Table
from gdkd_cache.report.inputs import Inputs
from gdkd_cache.report.options import ReportOptions
from gdkd_cache.report.sample import read_sample
from gdkd_cache.report.sections.paper import PAPER
from gdkd_cache.report.sections.teacher import TEACHER
from gdkd_cache.report.svg import to_svg
from gdkd_cache.training.records.runs import read_run


def _inputs(cache: Cache, source: ArraySource | None = None, runs: Sequence[Path] = (), **options: Any) -> Inputs:
    return Inputs(
        options=ReportOptions(runs=tuple(runs), **options),
        cache=cache,
        sample=read_sample(cache),
        classes=cache.manifest.identity.classes,
        source=source,
        dataset=None if source is None else cache.dataset(source),
        runs=[read_run(path) for path in runs],
    )


def _tables(parts: Sequence[Part]) -> dict[str, Table]:
    """By name; each figure can be drawn, and no name stands twice."""
    tables = [part.table if isinstance(part, Drawing) else part for part in parts if isinstance(part, Drawing | Table)]
    for part in parts:
        if isinstance(part, Drawing):
            assert part.described
            assert to_svg(part.figure, part.table.name, on_page=True).startswith("<svg")
    found = {table.name: table for table in tables}
    assert len(found) == len(tables)
    for table in tables:
        assert table.rows
        assert all(len(row) == len(table.columns) for row in table.rows)
        assert table.reading.endswith(".")
        for row in table.rows:
            for cell, column in zip(row, table.columns, strict=True):
                assert not column.format or cell is None or format(cell, column.format)
    return found


def _column(table: Table, number: int) -> list[Any]:
    return [row[number] for row in table.rows]


def _facts(parts: Sequence[Part]) -> Facts:
    (facts,) = (part for part in parts if isinstance(part, Facts))
    return facts


def test_a_sample_of_a_small_cache_is_all_of_it(digits_cache: Path) -> None:
    cache = open_cache(digits_cache)
    sample = read_sample(cache)
    assert sample.is_whole
    assert sample.logits.shape == (2, 256, 10)
    assert np.array_equal(sample.logits[1], cache.view(1).logits(range(256)))
    assert np.array_equal(sample.labels, cache.labels)


def test_a_sample_of_a_large_cache_is_spread_over_it(tmp_path: Path) -> None:
    """Views are left out first, then rows."""
    logits = np.random.default_rng(0).normal(size=(7, 50, 10)).astype("f4")
    pack(tmp_path / "p", logits, keys=[str(row) for row in range(50)], labels=np.arange(50) % 10)
    cache = open_cache(tmp_path / "p")
    some = read_sample(cache, most_values=5 * 50 * 10)
    assert not some.is_whole
    assert list(some.views) == [0, 2, 3, 4, 6]
    assert len(some.rows) == 50
    few = read_sample(cache, most_values=400)
    assert list(few.views) == [0, 2, 4, 6]
    assert few.rows.tolist() == np.linspace(0, 49, 10).round().tolist()
    assert np.array_equal(few.logits[3], cache.view(6).logits(few.rows))
    assert np.array_equal(few.labels, cache.labels[few.rows])
    assert "10 of 50 images in 4 of 7 views" in _facts(TEACHER.parts(_sampled(cache, 400))).lines["read"]


def _sampled(cache: Cache, most_values: int) -> Inputs:
    return replace(_inputs(cache), sample=read_sample(cache, most_values=most_values))


def test_teacher(digits: ArraySource, digits_cache: Path) -> None:
    cache = open_cache(digits_cache)
    parts = TEACHER.parts(_inputs(cache, digits))
    tables = _tables(parts)
    assert set(tables) == {
        f"teacher-{name}" for name in ("reliability", "confidence", "entropy", "confused", "agreement", "classes")
    }
    said = torch.stack([cache.view(view).logits(range(256)) for view in (0, 1)])
    right = (said.argmax(-1) == torch.from_numpy(cache.labels)).numpy()
    assert _facts(parts).lines["right"].startswith(f"{right.mean():.1%}")
    rows = tables["teacher-classes"].rows
    accuracies = _column(tables["teacher-classes"], 2)
    assert accuracies == sorted(accuracies)
    for name, images, accuracy, *_ in rows:
        own = cache.labels == cache.manifest.identity.classes.index(str(name))
        assert images == own.sum()
        assert accuracy == pytest.approx(right[:, own].mean())
    assert sum(_column(tables["teacher-reliability"], 2)) == 512
    for name in ("teacher-confidence", "teacher-entropy"):
        assert sum(_column(tables[name], 2) + _column(tables[name], 3)) == pytest.approx(1)
    hardest, ambiguous = (part for part in parts if isinstance(part, Pictures))
    own = said.softmax(-1)[:, range(256), cache.labels].mean(0)
    headings = [heading for heading, _ in hardest.rows]
    assert [heading.split(": ")[1] for heading in headings] == [cache.keys[row] for row in own.argsort()[:6].tolist()]
    assert all(len(pictures) == 3 for _, pictures in (*hardest.rows, *ambiguous.rows))
    assert all(picture.png.startswith(b"\x89PNG") for _, pictures in hardest.rows for picture in pictures)


def test_hard_images_are_of_those_that_are_there(digits: ArraySource, digits_cache: Path) -> None:
    source = take(digits, np.array([7, 3, 200]))
    hardest, _ = (
        part for part in TEACHER.parts(_inputs(open_cache(digits_cache), source)) if isinstance(part, Pictures)
    )
    assert {heading.split(": ")[1] for heading, _ in hardest.rows} == set(source.keys)


def test_teacher_without_images(digits_cache: Path) -> None:
    tables = _tables(TEACHER.parts(_inputs(open_cache(digits_cache))))
    assert {"teacher-hardest", "teacher-ambiguous"} < set(tables)
    probabilities = _column(tables["teacher-hardest"], 2)
    assert probabilities == sorted(probabilities)


def test_mixed_views_have_no_right_class(tmp_path: Path, digits: ArraySource, teacher: Network) -> None:
    build_small(tmp_path / "c", digits, teacher, recipe=Recipe("mixed", (), Mix(mixup_alpha=1.0)))
    inputs = _inputs(open_cache(tmp_path / "c"), digits)
    parts = TEACHER.parts(inputs)
    assert set(_tables(parts)) == {"teacher-confidence", "teacher-entropy"}
    assert "mixes two images" in _facts(parts).lines["left out"]
    assert "mixes two images" in _tables(PAPER.parts(inputs))["figure-4-average-predictions"].reading


def test_one_view_of_one_row(tmp_path: Path) -> None:
    """The smallest cache: no figure is empty, and none divides by nothing."""
    pack(tmp_path / "p", np.array([[[1.0, 0.0]]], "f4"), keys=["a"], labels=[0], codec="dense", losses=["kd"])
    inputs = _inputs(open_cache(tmp_path / "p"))
    assert "teacher-agreement" not in _tables(TEACHER.parts(inputs))
    assert "figure-5-without-top" not in _tables(PAPER.parts(inputs))


def test_average_predictions(digits_cache: Path) -> None:
    cache = open_cache(digits_cache)
    classes = cache.manifest.identity.classes
    tables = _tables(PAPER.parts(_inputs(cache, classes=(classes[3], classes[3]), temperature=2.0)))
    logits = torch.stack([cache.view(view).logits(np.flatnonzero(cache.labels == 3)) for view in (0, 1)])
    mean = logits.div(2).softmax(-1).mean((0, 1))
    rows = tables["figure-4-average-predictions"].rows
    assert [row[0] for row in rows] == [classes[3]] * 10
    assert [row[1] for row in rows] == [classes[number] for number in mean.argsort(descending=True).tolist()]
    assert [row[2] for row in rows] == pytest.approx(mean.sort(descending=True).values.tolist(), abs=1e-6)
    without, (top, *rest) = tables["figure-5-without-top"], _column(tables["figure-4-average-predictions"], 2)
    assert _column(without, 1)[:9] == [row[1] for row in rows[1:]]
    assert _column(without, 2)[:9] == pytest.approx([value / (1 - top) for value in rest], abs=1e-6)
    chosen = _tables(PAPER.parts(_inputs(cache)))["figure-4-average-predictions"].rows
    assert len({row[0] for row in chosen}) == 4
    with pytest.raises(UsageError, match="class cat is not in the cache; it has 10 classes"):
        PAPER.parts(_inputs(cache, classes=("cat",)))


def _run(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    told = {"k": 5, "temperature": 4.0, "factor": 2.0, "top_level": [0, 1, 2, 3, 4], "other": [1, 2, 4, 6, 8]}
    lines = [
        {"epoch": epoch, "accuracy": 0.5, "gradients": {**told, "kd": [0, 1, 2, 3, 4], **changes}} for epoch in (1, 2)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_gradients_over_the_epochs(tmp_path: Path, digits_cache: Path) -> None:
    table = _tables(PAPER.parts(_inputs(open_cache(digits_cache), runs=[_run(tmp_path / "s")])))["figure-3-gradients-1"]
    assert [row[0] for row in table.rows] == [1, 1, 1, 2, 2, 2]
    assert list(table.rows[1][2:]) == [1, 2, 4, 6, 8]
    assert "top 5 classes, at T = 4" in table.reading


@pytest.mark.parametrize(
    "changes",
    [
        {"kd": []},
        {"kd": [1, 2, 3, 4, 5, 6]},
        {"other": [5, 4, 3, 2, 1]},
        {"other": [-1, 4, 5, 6, 7]},
        {"top_level": [0, 1, 2, 3, 1e308]},
        {"factor": 0.5},
        {"temperature": 0},
        {"k": 10**400},
    ],
    ids=repr,
)
def test_gradients_that_cannot_be_are_left_out(tmp_path: Path, digits_cache: Path, changes: dict[str, Any]) -> None:
    parts = PAPER.parts(_inputs(open_cache(digits_cache), runs=[_run(tmp_path / "s", **changes)]))
    assert "figure-3-gradients-1" not in _tables(parts)


def test_gradients_of_nothing(tmp_path: Path, digits_cache: Path) -> None:
    """All magnitudes 0, as of a student that is its teacher: a logarithmic axis has no place for them."""
    nothing = dict.fromkeys(("top_level", "other", "kd"), [0.0] * 5)
    _tables(PAPER.parts(_inputs(open_cache(digits_cache), runs=[_run(tmp_path / "s", **nothing)])))
