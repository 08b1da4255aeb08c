"""Same pixels: for any batch, order, subset, worker, start method, thread count and rank; in memory or decoded."""

import io
import multiprocessing
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader, Dataset

from gdkd_cache.data.loader import ViewLoader
from gdkd_cache.data.recipes.geometry import HorizontalFlip, RandomResizedCrop
from gdkd_cache.data.recipes.mixing import Mix, partners
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.recipes.registry import RECIPES
from gdkd_cache.data.source import ArraySource, EncodedSource
from gdkd_cache.data.targets import ClassTargets
from gdkd_cache.data.views import ViewBatch, ViewRenderer, ViewRequest, requests_for
from gdkd_cache.errors import SourceError, UsageError
from gdkd_cache.seeding import draw, hash_keys, streams

COUNT = 40


def _tiles(height: int, width: int, kind: str) -> list[bytes]:
    """Scikit-learn's two photographs cut into tiles; JPEG tiles are of differing sizes."""
    tiles = []
    for photograph in load_sample_images().images:
        for number in range(COUNT // 2):
            top, left = 20 * (number % 4) + number, 30 * (number // 4)
            more = number if kind == "JPEG" else 0
            file = io.BytesIO()
            tile = photograph[top : top + height + more, left : left + width + 2 * more]
            Image.fromarray(tile).save(file, kind)
            tiles.append(file.getvalue())
    return tiles


def _encoded(files: list[bytes]) -> EncodedSource:
    labels = np.arange(len(files)) % 3
    keys = [f"tile/{row}" for row in range(len(files))]
    return EncodedSource(name="tiles", files=files, labels=labels, keys=keys, classes=["a", "b", "c"])


def _recipes(size: int) -> Iterator[Recipe]:
    """Every preset, and a recipe of what no preset has."""
    for name in RECIPES:
        sized = name.startswith("imagenet") or name == "resize"
        rectangular = f":height={size},width={size}" if name in ("scale-crop", "resize-to") else ""
        options = f":size={size}" if sized else rectangular
        yield open_recipe(name + options, 32, 32)
    mix = Mix(mixup_alpha=0.8, cutmix_alpha=1.0)
    yield Recipe("mixed", (RandomResizedCrop(size), HorizontalFlip()), mix)


@pytest.fixture(scope="module")
def png() -> EncodedSource:
    return _encoded(_tiles(32, 32, "PNG"))


@pytest.fixture(scope="module")
def jpeg() -> EncodedSource:
    return _encoded(_tiles(90, 120, "JPEG"))


@pytest.fixture(scope="module")
def in_memory(png: EncodedSource) -> ArraySource:
    images = np.stack([png[row][0].transpose(2, 0, 1) for row in range(COUNT)])
    return ArraySource(name="tiles", images=images, labels=png.labels, keys=png.keys, classes=png.classes)


@pytest.fixture(scope="module")
def renderers(png: EncodedSource, jpeg: EncodedSource, in_memory: ArraySource) -> list[ViewRenderer]:
    """Every preset on small PNGs, on the same images in memory, and on JPEGs where it gives one size."""
    made = [ViewRenderer(source, recipe, seed=5) for source in (png, in_memory) for recipe in _recipes(24)]
    recipes = [recipe for recipe in _recipes(48) if recipe.num_leading]
    return made + [ViewRenderer(jpeg, recipe, seed=5) for recipe in recipes]


def _view(renderer: ViewRenderer, rows: np.ndarray, batch_size: int = 64) -> torch.Tensor:
    parts = [renderer[request][0].pixels for request in requests_for(1, rows, batch_size)]
    return torch.cat(parts)


@pytest.fixture(scope="module")
def expected(renderers: list[ViewRenderer]) -> list[torch.Tensor]:
    return [_view(renderer, np.arange(COUNT)) for renderer in renderers]


def test_in_memory_is_one_by_one(renderers: list[ViewRenderer], expected: list[torch.Tensor]) -> None:
    kinds = len(list(_recipes(24)))
    for ours, theirs in zip(expected[:kinds], expected[kinds : 2 * kinds], strict=True):
        assert torch.equal(ours, theirs)
    assert renderers[kinds].in_memory
    assert not renderers[0].in_memory
    assert len(expected) > 2 * kinds + 4


@pytest.mark.parametrize("batch_size", [1, 7])
def test_any_batch_size(renderers: list[ViewRenderer], expected: list[torch.Tensor], batch_size: int) -> None:
    for renderer, pixels in zip(renderers, expected, strict=True):
        assert torch.equal(_view(renderer, np.arange(COUNT), batch_size), pixels)


@pytest.mark.parametrize("threads", [1, 2])
def test_any_order_rank_and_thread_count(
    renderers: list[ViewRenderer], expected: list[torch.Tensor], threads: int
) -> None:
    shuffled = np.random.default_rng(0).permutation(COUNT)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for renderer, pixels in zip(renderers, expected, strict=True):
            for rows in (shuffled, np.arange(COUNT)[1::2], np.array([7])):
                assert torch.equal(_view(renderer, rows, 13), pixels[torch.from_numpy(rows)])
    finally:
        torch.set_num_threads(before)


class _All(Dataset[torch.Tensor]):
    """Every renderer in one dataset, so that one set of workers renders them all."""

    def __init__(self, renderers: list[ViewRenderer]) -> None:
        self._renderers = renderers

    def __len__(self) -> int:
        return len(self._renderers)

    def __getitem__(self, index: int) -> torch.Tensor:
        return _view(self._renderers[index], np.arange(COUNT), 16)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_any_start_method(renderers: list[ViewRenderer], expected: list[torch.Tensor], method: str) -> None:
    context = multiprocessing.get_context(method)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This process", DeprecationWarning)  # of forking beside threads
        loader = DataLoader(_All(renderers), batch_size=None, num_workers=1, multiprocessing_context=context)
        for pixels, wanted in zip(loader, expected, strict=True):
            assert torch.equal(pixels, wanted)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader(renderers: list[ViewRenderer], expected: list[torch.Tensor], workers: int) -> None:
    """Several views of a row from one decoding, in the order of the requests."""
    kinds = len(list(_recipes(24)))
    for number in (kinds + 3, len(expected) - 1):  # cifar-strong in memory, mixed JPEGs
        loader = ViewLoader(renderers[number], num_workers=workers)
        for _ in range(2):  # workers persist
            requests = requests_for((0, 1, 4), np.arange(COUNT), 9)
            batches = list(loader.stream(requests))
            assert [batch.view for batch in batches] == [0, 1, 4] * len(requests)
            pixels = torch.cat([batch.pixels for batch in batches if batch.view == 1])
            assert torch.equal(pixels, expected[number])
            labels = torch.cat([batch.targets.labels for batch in batches if batch.view == 4])
            assert labels.tolist() == [row % 3 for row in range(COUNT)]


def test_views_seeds_and_keys_differ(in_memory: ArraySource) -> None:
    recipe = open_recipe("crop-flip", 32, 32)
    request = ViewRequest((1, 2), np.arange(COUNT))
    one, two = ViewRenderer(in_memory, recipe, 5)[request]
    (other, _) = ViewRenderer(in_memory, recipe, 6)[request]
    assert not torch.equal(one.pixels, two.pixels)
    assert not torch.equal(one.pixels, other.pixels)


# Mixing


def _mixed(source: ArraySource, mix: Mix) -> ViewBatch:
    return ViewRenderer(source, Recipe("mixed", (), mix), 5)[ViewRequest((1,), np.arange(COUNT))][0]


def test_partners() -> None:
    """Each row is a partner once and never its own; the order of the keys does not matter, the view does."""
    hashes = hash_keys(map(str, range(1000)))
    theirs = partners(0, 3, hashes)
    assert sorted(theirs.tolist()) == list(range(1000))
    assert (theirs != np.arange(1000)).all()
    order = np.random.default_rng(0).permutation(1000)
    assert np.array_equal(order[partners(0, 3, hashes[order])], theirs[order])
    assert not np.array_equal(partners(0, 4, hashes), theirs)
    assert not np.array_equal(partners(1, 3, hashes), theirs)


@pytest.mark.parametrize("method", ["mixup", "cutmix"])
def test_labels_are_mixed_as_the_pixels_are(in_memory: ArraySource, method: str) -> None:
    batch = _mixed(in_memory, Mix(mixup_alpha=1.0) if method == "mixup" else Mix(cutmix_alpha=1.0))
    assert isinstance(batch.targets, ClassTargets)
    assert batch.targets.shares is not None
    assert batch.targets.partner_labels is not None
    other = partners(5, 1, hash_keys(in_memory.keys))
    assert batch.targets.partner_labels.tolist() == in_memory.labels[other].tolist()
    own, theirs = in_memory.images.astype(float), in_memory.images[other].astype(float)
    for row, share in enumerate(batch.targets.shares.tolist()):
        pixels = batch.pixels[row].numpy()
        if method == "mixup":
            np.testing.assert_allclose(pixels, share * own[row] + (1 - share) * theirs[row], atol=0.51)
        else:
            kept = (pixels == own[row]).all(0)
            assert ((pixels == theirs[row]).all(0) | kept).all()
            assert kept.mean() >= share - 1e-6
    targets = batch.targets.for_cross_entropy(3)
    torch.testing.assert_close(targets.sum(1), torch.ones(COUNT))
    for row in range(COUNT):
        wanted = np.zeros(3)
        wanted[batch.targets.labels[row]] += batch.targets.shares[row]
        wanted[batch.targets.partner_labels[row]] += 1 - batch.targets.shares[row]
        np.testing.assert_allclose(targets[row], wanted, atol=1e-6)


def test_targets_are_cut_and_joined_whole(in_memory: ArraySource) -> None:
    mixed, plain = _mixed(in_memory, Mix(mixup_alpha=1.0)).targets, ClassTargets(torch.arange(COUNT))
    for targets in (mixed, plain):
        again = ClassTargets.joined([targets[:7], targets[7:]])
        assert len(targets[:7]) == 7
        assert torch.equal(again.for_cross_entropy(COUNT), targets.for_cross_entropy(COUNT))
    back = torch.arange(COUNT).flip(0)
    assert torch.equal(mixed[back].for_cross_entropy(3), mixed.for_cross_entropy(3).flip(0))


# Decoding


def test_scaled_decoding(jpeg: EncodedSource) -> None:
    """JPEG files are decoded at a half where both sides allow, and that is part of what a view is."""
    key, file = jpeg.keys[0], jpeg.files[0]
    assert isinstance(file, bytes)
    assert jpeg.decode(0, None).shape == (90, 120, 3)
    assert jpeg.decode(0, 45).shape == (45, 60, 3)
    assert jpeg.decode(0, 46).shape == (90, 120, 3)
    whole, half = (open_recipe(f"imagenet-eval:size=32,decode_side={side}", 90, 120) for side in (0, 40))
    request = ViewRequest((0,), np.arange(4))
    one, other = (ViewRenderer(jpeg, recipe, 0)[request][0].pixels for recipe in (whole, half))
    assert 0 < (one.float() - other.float()).abs().mean() < 8, key
    assert not whole.same_pixels(half.to_json())


def test_scaled_decoding_needs_files(in_memory: ArraySource) -> None:
    with pytest.raises(UsageError, match="decodes no files"):
        ViewRenderer(in_memory, open_recipe("imagenet:decode_side=40", 32, 32), 0)


def test_each_file_is_decoded_once_for_several_views(jpeg: EncodedSource) -> None:
    decoded: list[int] = []

    class Counting(EncodedSource):
        def decode(self, row: int, side: int | None) -> np.ndarray:
            decoded.append(row)
            return super().decode(row, side)

    source = Counting(**vars(jpeg))
    renderer = ViewRenderer(source, open_recipe("imagenet:size=32", 90, 120), 0)
    batches = list(ViewLoader(renderer).stream(requests_for((0, 1, 2, 3), np.arange(8), 4)))
    assert len(batches) == 8
    assert sorted(decoded) == list(range(8))


def test_views_of_several_sizes_are_refused(jpeg: EncodedSource) -> None:
    loader = ViewLoader(ViewRenderer(jpeg, open_recipe("none", 90, 120), seed=0))
    with pytest.raises(SourceError, match="view of 'tile/1' is 91x122, of 'tile/0' 90x120; recipe none must"):
        list(loader.stream(requests_for(0, np.arange(8), 4)))


def test_a_crop_larger_than_the_image_is_refused(in_memory: ArraySource) -> None:
    renderer = ViewRenderer(in_memory, open_recipe("crop-flip:size=48,padding=4", 32, 32), seed=0)
    with pytest.raises(SourceError, match="a side of 32 pixels"):
        next(ViewLoader(renderer).stream(requests_for(0, np.arange(2), 2)))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_rendering_names_the_key_in_one_line(png: EncodedSource, workers: int) -> None:
    source = _WrongImage(**vars(png))
    loader = ViewLoader(ViewRenderer(source, open_recipe("none", 32, 32), seed=0), num_workers=workers)
    with pytest.raises(SourceError, match=f"{png.keys[3]!r} is float32") as caught:
        list(loader.stream(requests_for(0, np.arange(8), 4)))
    assert "\n" not in str(caught.value)


class _WrongImage(EncodedSource):
    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        image, label = super().__getitem__(row)
        return (image.astype(np.float32) if row == 3 else image), label


# Independence


def test_streams_of_neighbours_are_independent() -> None:
    """10^6 draws: no correlation between the streams of neighbouring keys, views and seeds."""
    hashes = hash_keys(f"train/{row:07d}" for row in range(250_001))

    def signs(seed: int, view: int, counter: int) -> np.ndarray:
        words = draw(streams(seed, "view", view, hashes), counter)
        return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53 - 0.5

    base = np.concatenate([signs(0, view, 0)[:-1] for view in range(4)])
    others = {
        "key": np.concatenate([signs(0, view, 0)[1:] for view in range(4)]),
        "view": np.concatenate([signs(0, view + 1, 0)[:-1] for view in range(4)]),
        "seed": np.concatenate([signs(1, view, 0)[:-1] for view in range(4)]),
        "counter": np.concatenate([signs(0, view, 1)[:-1] for view in range(4)]),
    }
    for name, other in others.items():
        for first, second in ((base, other), (base**2, other**2), (np.abs(base), other)):
            correlation = np.corrcoef(first, second)[0, 1]
            assert abs(correlation) < 5 / np.sqrt(len(base)), name
