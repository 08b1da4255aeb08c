"""How near views of one image are: whole numbers from recipe, seed, key and image size alone."""

import hashlib
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdkd_cache.data.nearness import Nearness
from gdkd_cache.data.recipes import geometry
from gdkd_cache.data.recipes.geometry import HorizontalFlip, RandomCrop, RandomResizedCrop
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.seeding import draws, hash_keys

RECIPES = ("none", "crop-flip", "cifar-strong", "imagenet:size=32", "imagenet-randaug:size=32")


def words(rows: int, count: int, seed: int = 0) -> np.ndarray:
    return draws(hash_keys(f"{seed}/{row}" for row in range(rows)), range(count))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(RECIPES), st.integers(0, 2**40), st.integers(8, 90), st.integers(8, 90))
def test_symmetric_whole_and_of_the_row_alone(spec: str, seed: int, height: int, width: int) -> None:
    keys = hash_keys(f"{seed}/{row}" for row in range(40))
    nearness = Nearness(open_recipe(spec, 32, 32), seed, keys)
    sizes = np.tile(np.array([[height, width]], np.uint16), (40, 1))
    rows = np.arange(40)
    weights = nearness.weights(5, range(3, 7), rows, sizes)
    assert weights.dtype == np.int16
    assert ((weights >= 1) & (weights <= 256)).all()
    assert (weights[:, 2] == 256).all()
    back = [nearness.weights(other, range(5, 6), rows, sizes) for other in range(3, 7)]
    assert np.array_equal(weights, np.concatenate(back, 1))
    some = rows[::-3]
    assert np.array_equal(nearness.weights(5, range(3, 7), some, sizes[some]), weights[some])


def test_known_answers() -> None:
    crop = RandomCrop(32, padding=4)
    places = np.array([[4, 4], [4, 5], [5, 5], [7, 4], [0, 8]])
    expected = [max(1, round(256 * math.exp(-d / 8))) for d in (0, 1, 2, 9, 32)]
    assert crop.nearness(np.tile(places[:1], (5, 1)), places).tolist() == expected
    twice = RandomCrop(64, padding=8).nearness(2 * np.tile(places[:1], (5, 1)), 2 * places)
    assert twice.tolist() == expected  # a crop twice as large reaches twice as far
    assert HorizontalFlip().nearness(np.array([0, 1, 1]), np.array([0, 0, 1])).tolist() == [256, 77, 256]
    box = np.tile([[0, 0, 10, 20]], (4, 1))
    other = np.array([[0, 0, 10, 20], [0, 0, 10, 10], [5, 0, 10, 20], [10, 0, 5, 5]])
    near = RandomResizedCrop(8).nearness(box, other)
    assert near.tolist() == [256, *(max(1, round(256 * math.exp(8 * (i / 1024 - 1)))) for i in (512, 341, 0))]
    recipe = open_recipe("crop-flip", 32, 32)
    mirrored = recipe.nearness([places[:1], np.array([0])], [places[1:2], np.array([1])])
    assert mirrored is not None
    assert mirrored.tolist() == [round(expected[1] * 77 / 256)]


def test_places_are_where_views_are_cut() -> None:
    """To the pixel for crops; boxes differ at most by what the table of aspect ratios rounds."""
    crop, sizes = RandomCrop(32, padding=4), np.tile([[32, 40]], (200, 1))
    drawn = words(200, crop.num_draws)
    assert np.array_equal(crop.place(drawn, sizes), np.stack(crop.offsets(drawn, 32, 40), 1))
    step, sizes = RandomResizedCrop(32), np.tile([[375, 500]], (2000, 1))
    drawn = words(2000, step.num_draws)
    exact, tabled = step.boxes(drawn, 375, 500), step.place(drawn, sizes)
    same = (np.abs(exact - tabled) <= 1).all(1)
    assert same.mean() > 0.99
    mixed = np.array([[375, 500], [500, 375], [64, 64], [30, 200]])[np.arange(2000) % 4]
    each = np.concatenate([step.place(drawn[i : i + 1], mixed[i : i + 1]) for i in range(2000)])
    assert np.array_equal(step.place(drawn, mixed), each)


def test_recipes_without_geometry_weigh_all_alike() -> None:
    keys = hash_keys(["a", "b"])
    for nearness in (Nearness(None, 0, keys), Nearness(open_recipe("none", 8, 8), 0, keys)):
        assert (nearness.weights(3, range(2), np.arange(2), np.full((2, 2), 8)) == 256).all()


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (geometry._by_distance, "958617a4e14ee489"),
        (geometry._by_overlap, "80acf65201fd40f8"),
        (geometry._by_logarithm, "ab81627c279904a1"),
    ],
)
def test_tables_are_part_of_the_format(table: Callable[[], np.ndarray], expected: str) -> None:
    whole = np.rint(table() * 2**16).astype("<i8")
    assert hashlib.sha256(whole.tobytes()).hexdigest()[:16] == expected


def test_weights_are_part_of_the_format() -> None:
    keys = hash_keys(["one", "two", "three"])
    for spec, size, expected in (
        ("crop-flip", (32, 32), [[1, 11, 4, 1], [1, 1, 1, 1], [5, 6, 226, 6]]),
        ("imagenet", (375, 500), [[1, 1, 1, 1], [1, 1, 1, 2], [5, 2, 1, 2]]),
    ):
        nearness, sizes = Nearness(open_recipe(spec, 32, 32), 7, keys), np.tile(np.array([size], np.uint16), (3, 1))
        assert nearness.weights(9, range(4), np.arange(3), sizes).tolist() == expected
