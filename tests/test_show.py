"""The contact sheet: what stands under a picture is what the cache says of that row and view."""

import base64
import hashlib
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from small import build_small, take
from timm.data.imagenet_info import ImageNetInfo

from gdkd_cache import open_cache
from gdkd_cache.building.pack import pack
from gdkd_cache.cache.cache import Cache
from gdkd_cache.cache.replay import recipe_of
from gdkd_cache.data.recipes.mixing import Mix
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.source import ArraySource
from gdkd_cache.data.sources.names import worded
from gdkd_cache.data.targets import ClassTargets
from gdkd_cache.data.views import ViewRenderer, ViewRequest
from gdkd_cache.errors import CacheError, MismatchError, UsageError
from gdkd_cache.models.network import Network
from gdkd_cache.report.page_of_views import page_of_views
from gdkd_cache.report.sheet import ShownRow, ShownView, draw_sheet
from gdkd_cache.report.show import ShowOptions, save_picture, show, show_page, shown_rows


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
            assert isinstance(batch.targets, ClassTargets)
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


@pytest.mark.parametrize("title", ["word " * 60, "W" * 300, "/a/very/long/path" * 20 + ": digits, recipe none"])
def test_titles_are_never_cut_off(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take the lines that they need, which show all of them."""
    drawn: list[str] = []
    written = ImageDraw.ImageDraw.text

    def text(self: Any, where: Any, text: str, *args: Any, **facts: Any) -> None:
        drawn.append(text)
        written(self, where, text, *args, **facts)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    image = np.full((8, 8, 3), _PAINT, np.uint8)
    row = ShownRow(key="k", label=0, image=image, views=(ShownView(view=0, image=image, top=((0, 1.0),)),))
    picture = np.asarray(draw_sheet([row], ["a", "b"], [title, "second"]))
    lines = drawn[: drawn.index("second")]
    assert "".join(lines).replace(" ", "") == title.replace(" ", "")
    assert len(lines) > 1
    assert (picture[:, -13:] == 255).all()
    below = np.flatnonzero((picture == _PAINT).all(axis=2).any(axis=1))[0]
    assert below > 14 + 19 * (len(lines) + 1)


class _Page(HTMLParser):
    """Its text by element, what it refers to, and all its elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.setdefault(self._inside, []).append(data)


def test_page(digits: ArraySource, digits_cache: Path, tmp_path: Path) -> None:
    """What the picture shows, as text and pixels, in one file that loads nothing and runs nothing."""
    cache, options = open_cache(digits_cache), ShowOptions(rows=2)
    text = show_page(options, cache, digits)
    page, rows = _Page(text), shown_rows(options, cache, digits)
    named = page.texts["bdi"]
    assert [row.key for row in rows] == [name for name in named if name.startswith("digits/")]
    assert f"{rows[1].views[0].top[0][1]:.1%}" in page.texts["span"]
    sources = [attributes["src"] or "" for tag, attributes in page.elements if tag == "img"]
    assert len(sources) == 2 * 3
    for source, image in zip(sources, [rows[0].image, *(view.image for view in rows[0].views)], strict=False):
        with Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,")))) as found:
            assert np.array_equal(np.asarray(found), image)
    policy = next(facts["content"] for tag, facts in page.elements if facts.get("http-equiv"))
    (style,) = re.findall("<style>(.*?)</style>", text, re.DOTALL)
    allowed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy is not None
    assert policy.startswith(f"default-src 'none'; img-src data:; style-src 'sha256-{allowed}'")
    assert not {"script", "link", "iframe", "a"} & {tag for tag, _ in page.elements}
    assert "//" not in re.sub('base64,[^"]*', "", text)
    assert text == show_page(options, cache, digits)


@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "{{ 7 * 7 }}{% raw %}",
        "</style></title><b>",
        "a\u202eb\u2066c\u200fd",
        "&lt;b&gt;&amp;",
        "]]><!--",
        "javascript:alert(1)",
        "x" * 2**20,
        "\x00\x1b[2J\r\n",
    ],
    ids=range(10),
)
def test_hostile_names_are_text(name: str) -> None:
    """In classes, keys and titles alike; they are cut, and what turns or hides text is replaced."""
    image = np.zeros((200, 300, 3), np.uint8)
    view = ShownView(view=0, image=image, top=((0, 0.6), (1, 0.4)), mixed=((0, 0.5), (1, 0.5)))
    row = ShownRow(key=name, label=0, image=image, views=(view,))
    text = page_of_views([row], [name, "b"], [name, "plain"])
    plain = _Page(page_of_views([replace(row, key="k")], ["a", "b"], ["t", "plain"]))
    page = _Page(text)
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    shown = re.sub("[\x00-\x1f\u202e\u2066\u200f]", "\ufffd", name)
    assert sum(one == (shown if len(name) < 300 else f"{shown[:299]}…") for one in page.texts["bdi"]) >= 4
    assert len(text) < 100_000
    assert not re.search("[\x00\x1b\u202e\u2066\u200f]", text)


def test_large_pictures_are_whole() -> None:
    """However long their data are, and of any size."""
    image = np.random.default_rng(0).integers(0, 256, (400, 600, 3)).astype(np.uint8)
    row = ShownRow(key="k", label=0, image=image, views=(ShownView(view=0, image=image[:64, :64], top=((0, 1.0),)),))
    page = _Page(page_of_views([row], ["a"], ["t"]))
    sizes = []
    for source in [attributes["src"] or "" for tag, attributes in page.elements if tag == "img"]:
        with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2], validate=True))) as found:
            found.load()
            sizes.append((found.format, found.size))
    assert sizes == [("JPEG", (224, 149)), ("PNG", (64, 64))]


def test_wordnet_ids_become_words() -> None:
    """torchvision knows ImageNet's, timm others; what nobody knows stays."""
    info = ImageNetInfo("imagenet-1k")
    wnids = info.label_names()
    words = worded(wnids)
    assert words[:2] == ["tench", "goldfish"]
    assert all(words[i].casefold() in info.label_name_to_description(wnids[i]).casefold() for i in range(8))
    assert worded([wnids[1], "n99999999", "cat"]) == ["goldfish, Carassius auratus", "n99999999", "cat"]
    assert worded(["cat", "dog"]) == ["cat", "dog"]
