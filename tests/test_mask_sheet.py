"""The sheet of masks: what is where, in the colours of the legend, and nothing beyond its borders."""

from collections.abc import Iterator

import numpy as np
import pytest
from masked import CLASSES, coloured, random_mask

from gdkd_cache.data.masks import IGNORE
from gdkd_cache.report.mask_sheet import ShownMask, ShownMaskRow, class_colour, draw_mask_sheet, overlaid

_GRAY = np.full((24, 32, 3), 100, np.uint8)


def _shown(seed: int, *, teacher: bool = True) -> ShownMask:
    rng = np.random.default_rng(seed)
    mask = random_mask(rng, 7, 24, 32)
    said = {"classes": rng.integers(0, 7, (3, 4)), "confidence": rng.random((3, 4))} if teacher else {}
    return ShownMask(name=f"view {seed}", image=coloured(mask), mask=mask, **said)


def test_colours_of_classes_differ() -> None:
    colours = np.array([class_colour(class_id) for class_id in (*range(150), IGNORE)])
    assert len(np.unique(colours, axis=0)) == 151
    few = colours[[*range(19), 150]].astype(int)
    apart = np.abs(few[:, None] - few[None]).sum(-1)
    assert apart[~np.eye(20, dtype=bool)].min() > 40


def test_overlays_show_the_class_of_each_pixel_and_cell() -> None:
    """Whatever the number of cells: those at the borders reach the borders."""
    mask = random_mask(np.random.default_rng(0), 7, 24, 32)
    over = overlaid(_GRAY, mask)
    for class_id in np.unique(mask).tolist():
        expected = np.rint(0.4 * 100 + 0.6 * np.array(class_colour(class_id)))
        assert (over[mask == class_id] == expected).all()
    cells = overlaid(_GRAY, mask[::4, ::4])
    assert np.array_equal(cells, over)
    assert overlaid(_GRAY, np.array([[0, 1, 2]])).shape == (24, 32, 3)


def test_a_sheet_shows_all_that_was_given() -> None:
    """Every picture of every line stands in the sheet; the teacher's beside it, where there is one."""
    rows = [
        ShownMaskRow(key="a/0", images=(_shown(0, teacher=False), _shown(1))),
        ShownMaskRow(key="b", images=(_shown(2),)),
    ]
    sheet = np.asarray(draw_mask_sheet(rows, CLASSES, ["title"]))
    again = np.asarray(draw_mask_sheet(rows, CLASSES, ["title"]))
    assert np.array_equal(sheet, again)
    top = 0
    for one in (image for row in rows for image in row.images):
        pictures = [one.image, overlaid(one.image, one.mask)]
        if one.classes is not None and one.confidence is not None:
            gray = np.rint(255 * one.confidence).astype(np.uint8).repeat(8, 0).repeat(8, 1)
            pictures += [overlaid(one.image, one.classes), np.stack([gray] * 3, axis=-1)]
        large = [picture.repeat(12, 0).repeat(12, 1) for picture in pictures]
        places = [next(_places(sheet[top:], picture)) for picture in large]
        assert len({y for y, _ in places}) == 1
        assert [x for _, x in places] == sorted(x for _, x in places)
        top += places[0][0] + large[0].shape[0]


def _places(sheet: np.ndarray, picture: np.ndarray) -> Iterator[tuple[int, int]]:
    """Where a picture stands in the sheet, from the top."""
    height, width, _ = picture.shape
    first = (sheet[: len(sheet) - height + 1, : sheet.shape[1] - width + 1] == picture[0, 0]).all(-1)
    for y, x in np.argwhere(first).tolist():
        if np.array_equal(sheet[y : y + height, x : x + width], picture):
            yield y, x


@pytest.mark.parametrize("names", [CLASSES, ["W" * 300] * 7, ["\n\t\0\u202e"] * 7])
def test_texts_stay_in_their_places(names: list[str]) -> None:
    """The right border stays white, whatever classes, keys and titles are called."""
    rows = [ShownMaskRow(key="k" * 500 + "\n", images=(_shown(0),))]
    sheet = np.asarray(draw_mask_sheet(rows, names, ["t " * 500, "/" * 900]))
    assert (sheet[:, -10:] == 255).all()
    assert (sheet[:, :10] == 255).all()


def test_the_legend_has_what_is_seen() -> None:
    """In the order of ids, ignored pixels last; no other class."""
    mask = np.full((24, 32), 4, np.int16)
    mask[0, 0] = IGNORE
    one = ShownMask(name="source", image=_GRAY, mask=mask)
    sheet = np.asarray(draw_mask_sheet([ShownMaskRow(key="a", images=(one,))], CLASSES, []))
    legend = sheet[:50]
    found = [class_id for class_id in (*range(7), IGNORE) if (legend == class_colour(class_id)).all(-1).sum() > 50]
    assert found == [4, IGNORE]
