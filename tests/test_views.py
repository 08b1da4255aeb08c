"""Same pixels: for any batch, order, subset and worker; equal to torchvision's; and drift is noticed."""

from collections import Counter

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from gdkd_cache.data import ArraySource, Recipe, ViewLoader, ViewRenderer, open_recipe, requests_for
from gdkd_cache.data.probes import ROUNDING_RMS, difference, probe_pixels, probed
from gdkd_cache.data.recipes import HorizontalFlip, RandomCrop
from gdkd_cache.errors import CacheError, SourceError, UsageError
from gdkd_cache.seeding import draw_below, hash_keys, streams


class _OneByOne:
    """The same images without `images`: takes the per-sample path."""

    def __init__(self, source: ArraySource) -> None:
        self._source = source
        self.keys, self.classes, self.digest = source.keys, source.classes, source.digest

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        return self._source[row]


def _render(source: object, rows: np.ndarray, *, view: int = 1, batch_size: int = 64, workers: int = 0) -> torch.Tensor:
    recipe = open_recipe("crop-flip", 8, 8)
    loader = ViewLoader(ViewRenderer(source, recipe, seed=5), num_workers=workers)  # pyright: ignore[reportArgumentType]
    return torch.cat([batch.pixels for batch in loader.stream(requests_for(view, rows, batch_size))])


@pytest.fixture(scope="module")
def expected(digits: ArraySource) -> torch.Tensor:
    return _render(digits, np.arange(256))


@pytest.mark.parametrize("batch_size", [1, 7, 64, 256])
@pytest.mark.parametrize("per_sample", [False, True])
def test_any_batch_size(digits: ArraySource, expected: torch.Tensor, batch_size: int, per_sample: bool) -> None:
    source = _OneByOne(digits) if per_sample else digits
    assert torch.equal(_render(source, np.arange(256), batch_size=batch_size), expected)


@pytest.mark.parametrize("per_sample", [False, True])
def test_any_number_of_workers(digits: ArraySource, expected: torch.Tensor, per_sample: bool) -> None:
    source = _OneByOne(digits) if per_sample else digits
    assert torch.equal(_render(source, np.arange(256), workers=2), expected)


def test_any_order_subset_and_thread_count(digits: ArraySource, expected: torch.Tensor) -> None:
    rows = np.random.default_rng(0).permutation(256)[:100]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(_render(digits, rows, batch_size=13), expected[torch.from_numpy(rows)])
    finally:
        torch.set_num_threads(threads)


def test_views_seeds_and_keys_differ(digits: ArraySource, expected: torch.Tensor) -> None:
    assert not torch.equal(_render(digits, np.arange(256), view=2), expected)
    other = ViewRenderer(digits, open_recipe("crop-flip", 8, 8), seed=6)[requests_for(1, np.arange(256), 256)[0]]
    assert not torch.equal(other.pixels, expected)


def test_pixels_are_torchvisions() -> None:
    """For the drawn offsets and flips, the pixels are those of torchvision's pad, crop and horizontal_flip."""
    images = np.random.default_rng(0).integers(0, 256, (200, 3, 32, 32), dtype=np.uint8)
    state = streams(3, "view", 0, hash_keys(map(str, range(200))))
    views = Recipe("crop-flip", (RandomCrop(size=32, padding=4), HorizontalFlip())).apply(images, state)
    y, x, flips = draw_below(state, 0, 9), draw_below(state, 1, 9), draw_below(state, 16, 2)
    for row in range(200):
        view = functional.crop(functional.pad(torch.from_numpy(images[row]), [4]), int(y[row]), int(x[row]), 32, 32)
        view = functional.horizontal_flip(view) if flips[row] else view
        assert torch.equal(torch.from_numpy(views[row]), view)


def test_parameters_are_uniform() -> None:
    """Chi-square of 81 offsets and 2 flips over 100,000 keys, at a significance of one in a million."""
    state = streams(0, "view", 0, np.arange(100_000, dtype=np.uint64))
    cells = Counter(zip(draw_below(state, 0, 9).tolist(), draw_below(state, 1, 9).tolist(),
                        draw_below(state, 16, 2).tolist(), strict=True))  # fmt: skip
    assert len(cells) == 162
    mean = 100_000 / 162
    assert sum((count - mean) ** 2 / mean for count in cells.values()) < 161 + 5.5 * np.sqrt(2 * 161)


def test_recipes() -> None:
    recipe = open_recipe("crop-flip", 32, 32)
    assert recipe.steps == (RandomCrop(size=32, padding=4), HorizontalFlip())
    assert recipe.num_views(32, 32) == 162
    assert open_recipe("none", 32, 32).num_views(32, 32) == 1
    for made in (recipe, open_recipe("crop-flip:size=24,padding=0", 32, 32), open_recipe("none", 32, 32)):
        assert Recipe.from_json(made.to_json()) == made


@pytest.mark.parametrize("spec", ["crop", "crop-flip:sise=3", "crop-flip:size=big", "crop-flip:size=0", "none:x=1"])
def test_wrong_recipes_are_refused(spec: str) -> None:
    with pytest.raises(UsageError):
        open_recipe(spec, 32, 32)


def test_foreign_steps_are_refused() -> None:
    with pytest.raises(CacheError, match="recipe cannot be read"):
        Recipe.from_json({"name": "x", "steps": [{"step": "run_shell", "command": "true"}]})


def test_a_crop_larger_than_the_image_is_refused(digits: ArraySource) -> None:
    renderer = ViewRenderer(digits, open_recipe("crop-flip:size=20,padding=4", 8, 8), seed=0)
    with pytest.raises(SourceError, match="a side of 8 pixels"):
        next(ViewLoader(renderer).stream(requests_for(0, np.arange(2), 2)))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_rendering_names_the_key_in_one_line(digits: ArraySource, workers: int) -> None:
    source = _WrongImage(digits)
    loader = ViewLoader(ViewRenderer(source, open_recipe("none", 8, 8), seed=0), num_workers=workers)
    with pytest.raises(SourceError, match=f"{digits.keys[3]!r} is float32") as caught:
        list(loader.stream(requests_for(0, np.arange(8), 4)))
    assert "\n" not in str(caught.value)


class _WrongImage(_OneByOne):
    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        image, label = super().__getitem__(row)
        return (image.astype(np.float32) if row == 3 else image), label


def test_probed_rows() -> None:
    hashes = hash_keys(map(str, range(64_000)))
    assert 800 < probed(hashes).sum() < 1200  # 1 in 64
    for count in range(1, 6):
        assert probed(hashes[:count]).any()  # never none


@pytest.mark.parametrize("size", [8, 32, 96])
def test_verdicts(size: int) -> None:
    """Exact, rounding and different: no wrong verdict in 600 trials of each."""
    rng = np.random.default_rng(size)
    smooth = rng.normal(size=(200, 3, size, size)).cumsum(2).cumsum(3)
    spread = smooth.std((1, 2, 3), keepdims=True)
    images = np.clip(128 + 60 * (smooth - smooth.mean((1, 2, 3), keepdims=True)) / spread, 0, 255).astype(np.uint8)
    every = np.ones(200, bool)
    stored = probe_pixels(images, every)
    rounded = np.clip(images.astype(int) + (rng.random(images.shape) < 0.2), 0, 255).astype(np.uint8)
    flipped = images[..., ::-1]
    other = np.roll(images, 1, axis=0)
    for changed, kind in (
        (images.copy(), "exact"),
        (rounded, "rounding"),
        (flipped, "different"),
        (other, "different"),
    ):
        for a, b in zip(stored, probe_pixels(np.ascontiguousarray(changed), every), strict=True):
            rms = difference(a, b)
            assert kind == ("exact" if rms == 0 else "rounding" if rms < ROUNDING_RMS else "different")
