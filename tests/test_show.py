"""The contact sheet: what stands under a picture is what the cache says of that row and view."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import build_small, take

from gdkd_cache import open_cache
from gdkd_cache.building.pack import pack
from gdkd_cache.cache.cache import Cache
from gdkd_cache.cache.replay import recipe_of
from gdkd_cache.data.recipes.mixing import Mix
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.source import ArraySource
from gdkd_cache.data.views import ViewRenderer, ViewRequest
from gdkd_cache.errors import CacheError, MismatchError, UsageError
from gdkd_cache.models.network import Network
from gdkd_cache.report.sheet import ShownRow, ShownView, draw_sheet
from gdkd_cache.report.show import ShowOptions, save_picture, show, shown_rows


def test_what_is_shown_belongs_together(digits: ArraySource, digits_cache: Path) -> None:
    """Pixels, classes and probabilities are of that key and view, though the source has another order."""
    cache = open_cache(digits_cache)
    order = np.random.default_rng(0).permutation(256)
    source = take(digits, order)
    rows = shown_rows(ShowOptions(rows=5, views=(1, 0), temperature=2.0), cache, source)
    assert [row.key for row in rows] == [source.keys[i] for i in (0, 63, 127, 191, 255)]
    for row in rows:
        position = digits.keys.index(row.key)
        assert row.label == digits.labels[position]
        assert np.array_equal(row.image, digits[position][0])
        assert [view.view for view in row.views] == [1, 0]
        for view in row.views:
            (rendered,) = ViewRenderer(digits, _recipe(cache), 0)[ViewRequest((view.view,), np.array([position]))]
            assert np.array_equal(view.image, rendered.pixels[0].permute(1, 2, 0))
            logits = cache.view(view.view).logits([cache.keys.index(row.key)])[0]
            probabilities, classes = torch.softmax(logits / 2, 0).sort(descending=True)
            assert [class_id for class_id, _ in view.top] == classes[:5].tolist()
            assert [value for _, value in view.top] == pytest.approx(probabilities[:5].tolist())
            assert view.mixed == ()


def _recipe(cache: Cache) -> Recipe:
    return recipe_of(cache)


def test_defaults_and_keys(digits: ArraySource, digits_cache: Path) -> None:
    cache = open_cache(digits_cache)
    rows = shown_rows(ShowOptions(), cache, digits)
    assert len(rows) == 6
    assert [view.view for view in rows[0].views] == [0, 1]  # the cache has no more
    assert rows[0].views[0].top[0][1] > rows[0].views[0].top[4][1]
    keys = (digits.keys[9], digits.keys[2])
    assert tuple(row.key for row in shown_rows(ShowOptions(keys=keys), cache, digits)) == keys
    assert len(shown_rows(ShowOptions(rows=6), cache, take(digits, np.arange(3)))) == 3


def test_mixed_views_name_both_labels(tmp_path: Path, digits: ArraySource, teacher: Network) -> None:
    build_small(tmp_path / "c.zarr", digits, teacher, recipe=Recipe("mixed", (), Mix(mixup_alpha=1.0)))
    cache = open_cache(tmp_path / "c.zarr")
    for row in shown_rows(ShowOptions(), cache, digits):
        position = digits.keys.index(row.key)
        for view in row.views:
            (batch,) = ViewRenderer(digits, _recipe(cache), 0)[ViewRequest((view.view,), np.array([position]))]
            ((own, share), (other, rest)) = view.mixed
            assert own == row.label
            assert batch.targets.shares is not None
            assert batch.targets.partner_labels is not None
            assert share == batch.targets.shares[0]
            assert rest == pytest.approx(1 - share)
            assert other == batch.targets.partner_labels[0]
    show(ShowOptions(), cache, digits)


def test_what_does_not_belong_is_refused(tmp_path: Path, digits: ArraySource, digits_cache: Path) -> None:
    cache = open_cache(digits_cache)
    with pytest.raises(MismatchError, match="different pixels"):
        show(ShowOptions(), cache, replace(digits, images=255 - digits.images))
    with pytest.raises(MismatchError, match="is not in"):
        show(ShowOptions(), cache, replace(digits, keys=[f"other/{key}" for key in digits.keys]))
    with pytest.raises(MismatchError, match="recipe none is not the cache's"):
        show(ShowOptions(), cache, digits, recipe=Recipe("none"))
    with pytest.raises(UsageError, match="view 2 does not exist"):
        show(ShowOptions(views=(0, 2)), cache, digits)
    with pytest.raises(UsageError, match="key 'nine' is not in source digits"):
        show(ShowOptions(keys=("nine",)), cache, digits)
    pack(
        tmp_path / "p.zarr",
        np.random.default_rng(0).normal(size=(2, 256, 10)).astype("f4"),
        keys=digits.keys,
        labels=digits.labels,
    )
    with pytest.raises(CacheError, match="names no recipe"):
        show(ShowOptions(), open_cache(tmp_path / "p.zarr"), digits)


@pytest.mark.parametrize(
    "fields",
    [{"rows": 0}, {"rows": 65}, {"keys": ("a",) * 65}, {"views": ()}, {"views": (0,) * 17}, {"temperature": 0.0}],
)
def test_options_are_validated(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"rows|views|temperature"):
        ShowOptions(**fields)


_PAINT = (200, 30, 160)


def _sheet(height: int, width: int, name: str = "cat", top: int = 5) -> Image.Image:
    image = np.full((height, width, 3), _PAINT, np.uint8)
    view = ShownView(view=0, image=image, top=tuple((i, 0.2) for i in range(top)))
    row = ShownRow(key="train/" + 300 * "k", label=1, image=image, views=(view, view))
    return draw_sheet([row, row], [name] * 6, ["title"])


@pytest.mark.parametrize(
    ("size", "tile"),
    [((8, 8), 192), ((32, 32), 192), ((64, 64), 192), ((100, 100), 160), ((192, 192), 192), ((900, 900), 192)],
)
def test_sizes(size: tuple[int, int], tile: int) -> None:
    """Small images are enlarged by whole factors, large ones reduced; three columns stand side by side."""
    picture = _sheet(*size)
    assert picture.width == 3 * (tile + 14) + 14
    painted = (np.asarray(picture) == _PAINT).all(axis=2)
    shown = 192 if tile == 192 else 100
    assert painted.any(axis=0).sum() == 3 * shown
    assert painted.any(axis=1).sum() == 2 * shown


@pytest.mark.parametrize("name", ["W" * 500, "two\nlines\tand\0more", "", "猫"])
def test_no_text_leaves_its_column(name: str) -> None:
    """Between the columns and at the borders there is paper, however long the names; and the same twice."""
    picture = np.asarray(_sheet(8, 8, name))
    assert np.array_equal(picture, np.asarray(_sheet(8, 8, name)))
    below_title = picture[40:]
    for gap in range(4):
        assert (below_title[:, gap * 206 + 1 : gap * 206 + 13] == 255).all()
    assert (picture[-14:] == 255).all()
    assert (picture[:14] == 255).all()


def test_save(tmp_path: Path) -> None:
    picture = _sheet(8, 8)
    save_picture(picture, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as saved:
        assert np.array_equal(np.asarray(saved), np.asarray(picture))
    save_picture(picture, tmp_path / "a.JPG")
    with Image.open(tmp_path / "a.JPG") as saved:
        assert saved.format == "JPEG"
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(FileNotFoundError):
        save_picture(picture, tmp_path / "nowhere" / "a.png")
