"""Masks move with the pixels, to the bit, and what a mask is has no rounding."""

import dataclasses
import pickle
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from masked import coloured, masked, random_mask
from torch import Tensor
from torch.nn import functional as F

from gdkd_cache.data.checks import CHECK_RMS, Comparison, check_images
from gdkd_cache.data.images.memory import decoded_once
from gdkd_cache.data.loader import ViewLoader
from gdkd_cache.data.masks import IGNORE, cell_labels
from gdkd_cache.data.probes import ROUNDING_RMS, difference, probe_pixels
from gdkd_cache.data.recipes.colour import ColorJitter, GaussianBlur, RandomGrayscale, Solarize
from gdkd_cache.data.recipes.erasing import Cutout
from gdkd_cache.data.recipes.geometry import (
    HorizontalFlip,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    ResizeCenterCrop,
    resize_mask,
)
from gdkd_cache.data.recipes.mixing import Mix
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.recipes.scaling import ResizeTo, ScaleCrop
from gdkd_cache.data.recipes.step import Step
from gdkd_cache.data.source import FullSource
from gdkd_cache.data.targets import MaskTargets, Targets
from gdkd_cache.data.views import ViewBatch, ViewRenderer, requests_for
from gdkd_cache.errors import MismatchError, SourceError, UsageError
from gdkd_cache.seeding import Words, draws, streams

_CLASSES, _HEIGHT, _WIDTH = 7, 24, 33
GEOMETRY: tuple[Step, ...] = (
    RandomCrop(size=20, padding=5),
    HorizontalFlip(),
    RandomResizedCrop(19, interpolation="nearest"),
    RandomResizedCrop(40, interpolation="nearest"),
    Resize(17, interpolation="nearest"),
    ResizeCenterCrop(size=21, resize=29, interpolation="nearest"),
    ResizeTo(height=50, width=14, interpolation="nearest"),
    ScaleCrop(height=16, width=31, interpolation="nearest"),
    ScaleCrop(height=30, width=18, class_share=0.25, interpolation="nearest"),
)


def _words(step: Step, count: int, seed: int = 0) -> Words:
    return draws(streams(seed, "view", 0, np.arange(count, dtype=np.uint64)), range(step.num_draws))


def _masks(count: int, height: int = _HEIGHT, width: int = _WIDTH) -> Tensor:
    rng = np.random.default_rng(1)
    return torch.from_numpy(np.stack([random_mask(rng, _CLASSES, height, width) for _ in range(count)]))


# Steps


@pytest.mark.parametrize("step", GEOMETRY, ids=str)
@pytest.mark.parametrize("height", [_HEIGHT, 65])
def test_masks_stay_with_their_pixels(step: Step, height: int) -> None:
    """Images whose colours are their masks' classes are so afterwards; what no image shows is ignored."""
    masks = _masks(64, height)
    images = torch.from_numpy(np.stack([coloured(mask).transpose(2, 0, 1) for mask in masks.numpy()]))
    before, words = masks.clone(), _words(step, 64)
    words = step.decided(masks, words)
    seen, moved = step.apply(images, words), step.apply_masks(masks, words)
    assert torch.equal(masks, before)
    assert moved.dtype == torch.int16
    expected = torch.full(moved.shape, IGNORE, dtype=torch.int16)
    for class_id in range(_CLASSES):
        expected[(seen == torch.tensor(coloured(np.array([[class_id]]))[0, 0])[:, None, None]).all(1)] = class_id
    assert torch.equal(moved, expected)
    assert (moved != IGNORE).any()


@pytest.mark.parametrize("step", GEOMETRY, ids=str)
def test_a_batch_of_masks_is_its_masks(step: Step) -> None:
    masks, words = _masks(16), _words(step, 16)
    whole = step.apply_masks(masks, step.decided(masks, words))
    for row in range(16):
        one, own = masks[row : row + 1], words[row : row + 1]
        assert torch.equal(step.apply_masks(one, step.decided(one, own))[0], whole[row])


@pytest.mark.parametrize(
    "step", [ColorJitter(0.4, 0.4, 0.4, 0.1), RandomGrayscale(1.0), GaussianBlur(kernel=5), Solarize(1.0)], ids=str
)
def test_colours_leave_masks_alone(step: Step) -> None:
    masks = _masks(4)
    assert torch.equal(step.apply_masks(masks, _words(step, 4)), masks)


@pytest.mark.parametrize("size", [(24, 33), (11, 20), (48, 66), (1, 1), (100, 7)])
def test_a_resized_mask_shows_the_nearest_pixels(size: tuple[int, int]) -> None:
    """Of a bilinear image, those at the centres of the new ones; of a nearest one, those that torch's image shows."""
    masks = _masks(3)
    for interpolation, mode in (("bilinear", "nearest-exact"), ("nearest", "nearest")):
        expected = F.interpolate(masks[:, None].double(), size, mode=mode)[:, 0].to(torch.int16)
        assert torch.equal(resize_mask(masks, size, interpolation), expected)
    assert torch.equal(cell_labels(masks.long(), size), resize_mask(masks, size, "bilinear").long())


def test_cells_of_a_known_grid() -> None:
    masks = torch.arange(8 * 8).view(1, 8, 8)
    assert cell_labels(masks, (2, 2)).tolist() == [[[18, 22], [50, 54]]]
    assert cell_labels(masks, (1, 3)).tolist() == [[[33, 36, 38]]]


# Scaled crops

_SCALE_CROP = ScaleCrop(height=48, width=64)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (96, 100), (20, 300), (1, 1)])
def test_where_a_scaled_crop_lies(height: int, width: int) -> None:
    """In the image; all of the crop comes from it unless the image is too small, and scales are what was asked for."""
    top, left, cut_h, cut_w, seen_h, seen_w = _SCALE_CROP.boxes(_words(_SCALE_CROP, 4000), height, width).T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + cut_h <= height).all()
    assert (left + cut_w <= width).all()
    assert (seen_h[cut_h < height] == 48).all()
    assert (seen_w[cut_w < width] == 64).all()
    assert (seen_h <= 48).all()
    assert (seen_w <= 64).all()
    if height > 2:
        scales = seen_h / cut_h
        assert 0.48 < scales.min() < 0.52
        assert 1.9 < scales.max() < 2.1
        assert abs(scales.mean() - 1.25) < 0.03
        assert len(np.unique(left)) > 10


def test_a_scaled_crop_is_cut_from_the_scaled_image() -> None:
    """Away from the borders, where the kernel of the whole image's resize sees what was cut off."""
    rng = np.random.default_rng(0)
    smooth = F.interpolate(torch.from_numpy(rng.random((1, 3, 9, 13))), (90, 130), mode="bicubic")
    image = (smooth.clamp(0, 1) * 255).round().to(torch.uint8)
    step, words = ScaleCrop(height=32, width=40, scale=(2.0, 2.0)), _words(_SCALE_CROP, 50)
    whole = F.interpolate(image.float(), (180, 260), mode="bilinear")
    for row in range(50):
        own = words[row : row + 1]
        top, left = 2 * step.boxes(own, 90, 130)[0, :2]
        expected = whole[0, :, top : top + 32, left : left + 40]
        assert (step.apply(image, own)[0].float() - expected)[:, 1:-1, 1:-1].abs().max() <= 1


BOXES = [
    [14, 22, 41, 55, 48, 64],
    [9, 24, 39, 52, 48, 64],
    [3, 3, 57, 75, 48, 64],
    [2, 41, 33, 44, 48, 64],
]
PLAIN, BALANCED = 0xEC0462D3, 0xEC0462D3


def test_known_answers_of_scaled_crops() -> None:
    """Boxes and masks are the same on every machine."""
    words = _words(_SCALE_CROP, 4)
    assert _SCALE_CROP.boxes(words, 60, 90).tolist() == BOXES
    balanced = ScaleCrop(height=48, width=64, class_share=0.3)
    masks = _masks(32, 60, 90)
    drawn = _words(balanced, 32)
    for step, expected in ((_SCALE_CROP, PLAIN), (balanced, BALANCED)):
        moved = step.apply_masks(masks, step.decided(masks, drawn))
        assert zlib.crc32(moved.numpy().astype("<i2").tobytes()) == expected


def _largest_share(mask: Tensor) -> float:
    counts = np.bincount(mask[mask != IGNORE].numpy())
    return counts.max() / counts.sum() if len(counts) else np.inf


@pytest.mark.parametrize("share", [0.2, 0.3, 0.45])
def test_the_share_of_a_class(share: float) -> None:
    """The first of ten crops in which no class has more is taken, else the last."""
    step, masks = ScaleCrop(height=12, width=12, class_share=share), _masks(100)
    words = _words(step, 100)
    decided = step.decided(masks, words)
    attempts = []
    for row in range(100):
        offsets = [words[row, 1 + 2 * i : 3 + 2 * i] for i in range(10)]
        crops = []
        for offset in offsets:
            own = words[row : row + 1].copy()
            own[0, 1:3] = offset
            crops.append(step.apply_masks(masks[row : row + 1], own)[0])
        attempt = next((i for i, crop in enumerate(crops) if _largest_share(crop) <= share), 9)
        assert (decided[row, 1:3] == offsets[attempt]).all()
        assert torch.equal(step.apply_masks(masks[row : row + 1], decided[row : row + 1])[0], crops[attempt])
        attempts.append(attempt)
    assert len(set(attempts)) > 1
    ignored = torch.full_like(masks, IGNORE)
    assert (step.decided(ignored, words)[:, 1:3] == words[:, 19:21]).all()


def test_a_scaled_crop_fills_with_its_colour() -> None:
    step = ScaleCrop(height=40, width=40, scale=(1.0, 1.0), fill=(1, 2, 3))
    view = step.apply(torch.full((1, 3, 30, 50), 9, dtype=torch.uint8), _words(step, 1))
    assert (view[0, :, :30] == 9).all()
    assert (view[0, :, 30:] == torch.tensor([1, 2, 3])[:, None, None]).all()


# Recipes


@dataclasses.dataclass(frozen=True)
class Silent(Step):
    """A step that says nothing of masks."""

    @property
    def num_draws(self) -> int:
        return 0

    def apply(self, images: Tensor, words: Words) -> Tensor:
        return images


@dataclasses.dataclass(frozen=True)
class Still(Silent):
    leaves_masks: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class Halved(Silent):
    """A step whose masks are of another size than its images."""

    def apply_masks(self, masks: Tensor, words: Words) -> Tensor:
        return masks[:, ::2]


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (Recipe("r", (HorizontalFlip(), Silent())), r"step \S+:Silent does not say what becomes of masks"),
        (Recipe("r", (Cutout(3),)), "recipe r: step cutout does not say"),
        (Recipe("r", mix=Mix(mixup_alpha=1.0)), "recipe r has mix, which is not for images with masks"),
        (Recipe("r", (Resize(8),), decode_side=8), "recipe r has decode_side"),
    ],
)
def test_recipes_that_are_not_for_masks(recipe: Recipe, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ViewRenderer(masked(4), recipe, 0)


def test_recipes_that_are_for_masks_alone(digits: FullSource) -> None:
    with pytest.raises(UsageError, match="step scale_crop looks at masks, and these images have none"):
        ViewRenderer(digits, open_recipe("scale-crop:height=4,width=4,class_share=.75", 8, 8), 0)
    assert ViewRenderer(digits, open_recipe("scale-crop:height=4,width=6", 8, 8), 0)


def test_steps_of_ones_own() -> None:
    (batch,) = _rendered(masked(4), Recipe("r", (Still(),)))
    assert isinstance(batch.targets, MaskTargets)
    with pytest.raises(UsageError, match=r"step \S+:Halved gives masks torch.int16 \[4, 12, 33\]; they must be int16"):
        _rendered(masked(4), Recipe("r", (Halved(),)))


def test_specs() -> None:
    recipe = open_recipe("scale-crop:height=12,width=20,scale=.5/1.5,class_share=.75", 24, 33)
    assert recipe.steps == (ScaleCrop(12, 20, scale=(0.5, 1.5), class_share=0.75), HorizontalFlip())
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert recipe.evaluation((12, 20)) == "none"
    assert open_recipe("resize-to:height=12,width=20", 24, 33).evaluation((12, 20)) == "resize-to:height=12,width=20"
    assert open_recipe("scale-crop", 24, 33).steps[0] == ScaleCrop(512, 1024)


# Views


def _rendered(source: FullSource, recipe: Recipe, size: int = 100, workers: int = 0, views: Any = 0) -> list[ViewBatch]:
    loader = ViewLoader(ViewRenderer(source, recipe, 3), num_workers=workers)
    return list(loader.stream(requests_for(views, np.arange(len(source)), size)))


def _joined(batches: list[ViewBatch]) -> tuple[Tensor, Tensor]:
    targets = Targets.joined([batch.targets for batch in batches])
    assert isinstance(targets, MaskTargets)
    assert (targets.labels == 0).all()
    return torch.cat([batch.pixels for batch in batches]), targets.masks


SPECS = ("none", "crop-flip:size=20,padding=4", "imagenet:size=16", "scale-crop:height=18,width=25,class_share=.3")


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("in_memory", [False, True])
def test_views_are_the_same_however_they_are_rendered(spec: str, in_memory: bool) -> None:
    """Pixels and masks, in any batches, order and company, and whether images lie in memory."""
    source, recipe = masked(23), open_recipe(spec, _HEIGHT, _WIDTH)
    expected = _joined(_rendered(source, recipe))
    other = masked(23, in_memory=in_memory)
    for size in (1, 7, 23):
        assert all(map(torch.equal, _joined(_rendered(other, recipe, size)), expected))
    several = _rendered(other, recipe, 5, views=(4, 0, 2))
    assert all(map(torch.equal, _joined([batch for batch in several if batch.view == 0]), expected))
    assert not torch.equal(several[0].pixels, several[1].pixels) or spec == "none"
    rows = np.random.default_rng(0).permutation(23)
    for batch in ViewLoader(ViewRenderer(other, recipe, 3)).stream(requests_for(0, rows, 6)):
        assert isinstance(batch.targets, MaskTargets)
        assert torch.equal(batch.targets.masks, expected[1][batch.rows])
        assert torch.equal(batch.targets.for_cross_entropy(_CLASSES), expected[1][batch.rows].long())
    taken = other.take(np.array([2, 5, 11]))
    some = [one[[2, 5, 11]] for one in expected]
    assert all(map(torch.equal, _joined(_rendered(taken, recipe)), some))


def test_views_of_worker_processes() -> None:
    source, recipe = masked(23), open_recipe(SPECS[-1], _HEIGHT, _WIDTH)
    expected = _joined(_rendered(source, recipe))
    assert all(map(torch.equal, _joined(_rendered(source, recipe, 4, workers=2)), expected))


def test_classes_and_pixels_of_whole_views_agree() -> None:
    """Through a recipe of nearest steps, as through each of them."""
    steps = (ScaleCrop(20, 28, class_share=0.4, interpolation="nearest"), HorizontalFlip(), RandomCrop(16, 3))
    pixels, masks = _joined(_rendered(masked(23), Recipe("r", steps)))
    for pixel, mask in zip(pixels, masks.numpy(), strict=True):
        seen = mask != IGNORE
        assert np.array_equal(pixel.permute(1, 2, 0).numpy()[seen], coloured(mask)[seen])


def test_sizes_of_views_must_agree() -> None:
    with pytest.raises(SourceError, match=r"view of '1' is 25x33, of '0' 24x33; recipe none must give one size"):
        _rendered(masked(2, heights=(24, 25)), Recipe("none"))


# Checks and probes


def _moved(mask: np.ndarray) -> np.ndarray:
    """With one pixel of another class."""
    other = mask.copy()
    other[3, 4] = (other[3, 4] + 1) % _CLASSES if other[3, 4] != IGNORE else 0
    return other


def test_another_mask_is_another_probe() -> None:
    """One pixel of another class is never rounding, and rounding of the image stays that."""
    rng = np.random.default_rng(2)
    for _ in range(200):
        mask = random_mask(rng, _CLASSES, _HEIGHT, _WIDTH)
        image = rng.integers(1, 255, (3, _HEIGHT, _WIDTH), dtype=np.uint8)
        rounded = image + rng.integers(-1, 2, image.shape).astype(np.uint8)
        own = probe_pixels(image, mask)
        assert (own != probe_pixels(image)).any()
        assert difference(own, probe_pixels(image, _moved(mask))) > 10 * ROUNDING_RMS
        assert 0 < difference(own, probe_pixels(rounded, mask)) < ROUNDING_RMS


def test_another_mask_has_another_check() -> None:
    rng = np.random.default_rng(2)
    masks = [random_mask(rng, _CLASSES, _HEIGHT, _WIDTH) for _ in range(2000)]
    image = rng.integers(0, 256, (_HEIGHT, _WIDTH, 3), dtype=np.uint8)
    checks = check_images(((image, mask) for mask in masks), len(masks))
    others = check_images(((image, _moved(mask)) for mask in masks), len(masks))
    assert (checks[:, :4] != others[:, :4]).any(1).all()
    assert np.mean([difference(one, other) < CHECK_RMS for one, other in zip(checks, others, strict=True)]) <= 1 / 1000
    plain = check_images([(image, None)], 1)
    assert (plain != checks).any(1).all()


@given(arrays(np.int16, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 5)), st.data())
@settings(deadline=None)
def test_a_mask_and_its_shape_decide_a_check(mask: np.ndarray, data: st.DataObject) -> None:
    image = np.zeros((*mask.shape, 3), np.uint8)
    other = mask.copy()
    other[tuple(data.draw(st.integers(0, extent - 1)) for extent in mask.shape)] += data.draw(st.integers(1, 9))
    own, another = check_images([(image, mask), (image, other)], 2)
    assert (own[:4] != another[:4]).any()


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_changed_mask_is_refused(in_memory: bool) -> None:
    """Of an unchanged image; in what is compared when views are rendered, and in probes of decoded images and views."""
    source, changed = masked(6, in_memory=in_memory), masked(6, in_memory=in_memory, change=(4, _moved))
    recipe, request = Recipe("none"), requests_for(0, np.arange(6), 6)[0]
    everything: dict[str, Any] = {"probe_rows": np.ones(6, bool), "probe_sources": True, "check_with": 0}
    (own,), (other,) = (ViewRenderer(one, recipe, 0, **everything)[request] for one in (source, changed))
    for column in ("probes", "source_probes", "source_checks"):
        differs = (getattr(own, column) != getattr(other, column)).any(1)
        assert differs.tolist() == [False, False, False, False, True, False], column
    assert own.source_checks is not None
    if not in_memory:  # those are compared once, before
        comparison = Comparison(source.keys, [own.source_checks], strict=False)
        (again,) = ViewRenderer(source, recipe, 0, comparison=comparison)[request]
        assert again.rounded is not None
        assert not again.rounded.any()
        with pytest.raises(MismatchError, match=r"decoded image or mask of '4' has different pixels"):
            ViewRenderer(changed, recipe, 0, comparison=comparison)[request]


# Targets, and images that are kept


def test_targets() -> None:
    targets = MaskTargets(torch.zeros(5, dtype=torch.int64), _masks(5))
    assert len(targets) == len(targets.labels) == 5
    assert torch.equal(targets[1:3].masks, targets.masks[1:3])
    joined = Targets.joined([targets[:2], targets[2:]])
    assert isinstance(joined, MaskTargets)
    assert torch.equal(joined.masks, targets.masks)
    logits = torch.randn(5, _CLASSES, _HEIGHT, _WIDTH)
    given = targets.for_cross_entropy(_CLASSES)
    kept = targets.masks != IGNORE
    assert F.cross_entropy(logits, given).isclose(F.cross_entropy(logits.movedim(1, -1)[kept], given[kept]))


@pytest.mark.parametrize("in_memory", [False, True])
def test_images_and_masks_that_are_kept(tmp_path: Path, in_memory: bool) -> None:
    """In memory or in a file: they are not decoded again, and give the same views; another mask is another file."""
    source, recipe = masked(9, heights=(24,) if in_memory else (24, 31)), open_recipe(SPECS[-1], _HEIGHT, _WIDTH)
    kept = decoded_once(source, recipe, 10**9, tmp_path)
    assert kept is not source
    assert (kept.images is not None) == in_memory
    for row in range(9):
        for ours, theirs in zip(kept[row], source[row], strict=True):
            assert ours.dtype == theirs.dtype
            assert np.array_equal(ours, theirs)
        assert np.array_equal(kept.mask(row), source.mask(row))
    expected = _joined(_rendered(source, recipe))
    for one in (kept, pickle.loads(pickle.dumps(kept))):
        assert all(map(torch.equal, _joined(_rendered(one, recipe)), expected))
    if not in_memory:
        changed = masked(9, heights=(24, 31), change=(4, _moved))
        again = decoded_once(changed, recipe, 10**9, tmp_path)
        assert np.array_equal(again.mask(4), changed.mask(4))
        assert not np.array_equal(again.mask(4), kept.mask(4))
