"""Every step: torchvision's distribution of parameters, torchvision's pixels for given parameters, exact JSON."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from gdkd_cache.data.recipes import registry
from gdkd_cache.data.recipes.colour import (
    AutoContrast,
    ColorJitter,
    Equalize,
    GaussianBlur,
    Posterize,
    RandomGrayscale,
    Solarize,
)
from gdkd_cache.data.recipes.erasing import Cutout, RandomErasing
from gdkd_cache.data.recipes.geometry import HorizontalFlip, RandomCrop, RandomResizedCrop, Resize, ResizeCenterCrop
from gdkd_cache.data.recipes.mixing import Mix
from gdkd_cache.data.recipes.operations import operate
from gdkd_cache.data.recipes.policies import AugMix, AutoAugment, RandAugment, TrivialAugmentWide, policy
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.recipes.registry import RECIPES
from gdkd_cache.data.recipes.scaling import ResizeTo, ScaleCrop
from gdkd_cache.data.recipes.step import Step
from gdkd_cache.errors import CacheError, UsageError
from gdkd_cache.seeding import Words, draws, streams

STEPS: tuple[Step, ...] = (
    RandomCrop(size=28, padding=4),
    RandomResizedCrop(20),
    RandomResizedCrop(40, interpolation="bicubic", antialias=False),
    ResizeCenterCrop(size=24, resize=28),
    Resize(17),
    ResizeTo(height=17, width=40),
    ScaleCrop(height=24, width=40),
    HorizontalFlip(),
    ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, probability=0.8),
    RandomGrayscale(),
    GaussianBlur(kernel=5),
    Solarize(),
    Posterize(),
    Equalize(),
    AutoContrast(),
    AutoAugment(policy="cifar10"),
    AutoAugment(policy="imagenet", interpolation="bilinear"),
    RandAugment(),
    TrivialAugmentWide(),
    AugMix(),
    RandomErasing(),
    Cutout(size=12),
)
LEVEL = 1e-6
"""The significance at which a statistical test fails; the draws are fixed, so none of them is flaky."""


def _words(step: Step, count: int, seed: int = 0) -> Words:
    return draws(streams(seed, "view", 0, np.arange(count, dtype=np.uint64)), range(step.num_draws))


def _images(count: int, height: int = 32, width: int = 32) -> Tensor:
    """Smooth random images: what resizes and histograms meet in practice."""
    rng = np.random.default_rng(0)
    walk = rng.normal(size=(count, 3, height, width)).cumsum(2).cumsum(3)
    low, high = walk.min((1, 2, 3), keepdims=True), walk.max((1, 2, 3), keepdims=True)
    return torch.from_numpy(((walk - low) / (high - low) * 255).astype(np.uint8))


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_a_batch_is_its_images(step: Step) -> None:
    """Bit-identical one by one, in parts, and in another memory layout; and the input is left as it was."""
    images, words = _images(96), _words(step, 96)
    before = images.clone()
    whole = step.apply(images, words)
    assert whole.dtype == torch.uint8
    assert torch.equal(images, before)
    for row in range(96):
        assert torch.equal(step.apply(images[row : row + 1], words[row : row + 1])[0], whole[row])
    interleaved = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(step.apply(interleaved, words), whole)


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_json(step: Step) -> None:
    recipe = Recipe("mine", (step,), decode_side=64)
    stored = json.loads(json.dumps(recipe.to_json()))
    assert Recipe.from_json(stored) == recipe
    assert recipe.same_pixels(stored | {"name": "another"})
    assert not recipe.same_pixels(stored | {"decode_side": 65})


@pytest.mark.parametrize("name", list(RECIPES))
def test_presets(name: str) -> None:
    recipe = open_recipe(name, 32, 32)
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_what_presets_are() -> None:
    crop, flip = RandomCrop(size=32, padding=4), HorizontalFlip()
    assert open_recipe("crop-flip", 32, 32).steps == (crop, flip)
    assert open_recipe("cifar-strong", 32, 32).steps == (crop, flip, AutoAugment(policy="cifar10"), Cutout(16))
    assert open_recipe("imagenet", 500, 375).steps == (RandomResizedCrop(224), flip)
    assert open_recipe("imagenet-randaug", 500, 375).steps == (RandomResizedCrop(224), flip, RandAugment())
    assert open_recipe("imagenet-eval", 500, 375).steps == (ResizeCenterCrop(224, 256),)
    assert open_recipe("imagenet:size=160,decode_side=320", 500, 375).decode_side == 320
    assert open_recipe("crop-flip", 32, 32).num_views(32, 32) == 162
    assert open_recipe("none", 32, 32).num_views(32, 32) == 1
    assert open_recipe("imagenet", 32, 32).num_views(32, 32) is None


# Pixels for given parameters


def _functional(step: Step, image: Tensor, word: Words) -> Tensor:
    """One image by torchvision's functions, with the parameters that the step draws."""
    height, width = image.shape[1:]
    if isinstance(step, RandomCrop):
        (top,), (left,) = step.offsets(word, height, width)
        return functional.crop(functional.pad(image, [step.padding]), int(top), int(left), step.size, step.size)
    if isinstance(step, RandomResizedCrop):
        (top, left, h, w), size = step.boxes(word, height, width)[0].tolist(), [step.size, step.size]
        mode = v2.InterpolationMode(step.interpolation)
        return functional.resized_crop(image, top, left, h, w, size, mode, antialias=step.antialias)
    if isinstance(step, RandomErasing):
        top, left, h, w = step.boxes(word, height, width)[0].tolist()
        return functional.erase(image, top, left, h, w, torch.tensor(0)) if h else image
    if isinstance(step, Cutout):
        top, left = int(word[0, 0] >> np.uint64(32)) * height >> 32, int(word[0, 1] >> np.uint64(32)) * width >> 32
        (y, y2), (x, x2) = ((max(at - 6, 0), min(at + 6, 32)) for at in (top, left))
        return functional.erase(image, y, x, y2 - y, x2 - x, torch.tensor(0))
    if isinstance(step, GaussianBlur):
        (sigma,) = step.sigmas(word).tolist()
        return functional.gaussian_blur(image, [step.kernel, step.kernel], [sigma, sigma])
    assert isinstance(step, ColorJitter)
    assert step.hue == 0
    assert step.contrast == 0
    brightness, _, saturation, _ = step.factors(word)[0].tolist()
    one = functional.adjust_saturation(functional.adjust_brightness(image, brightness), saturation)
    other = functional.adjust_brightness(functional.adjust_saturation(image, saturation), brightness)
    made = step.apply(image[None], word)[0]
    return one if torch.equal(one, made) else other


@pytest.mark.parametrize(
    "step",
    [*(s for s in STEPS if isinstance(s, RandomCrop | RandomResizedCrop | RandomErasing | Cutout | GaussianBlur)),
     ColorJitter(brightness=0.4, saturation=0.8)],
    ids=str,
)  # fmt: skip
def test_pixels_are_torchvisions(step: Step) -> None:
    images, words = _images(64), _words(step, 64)
    made = step.apply(images, words)
    for row in range(64):
        assert torch.equal(made[row], _functional(step, images[row], words[row : row + 1]))


@pytest.mark.parametrize(
    ("step", "function"),
    [(HorizontalFlip(), functional.horizontal_flip),
     (RandomGrayscale(probability=0.5), lambda x: functional.rgb_to_grayscale(x, 3)),
     (Solarize(), lambda x: functional.solarize(x, 128)),
     (Posterize(), lambda x: functional.posterize(x, 4)),
     (Equalize(), functional.equalize),
     (AutoContrast(), functional.autocontrast)],
    ids=lambda x: str(x) if isinstance(x, Step) else "",
)  # fmt: skip
def test_changes_with_a_probability(step: Step, function: Callable[[Tensor], Tensor]) -> None:
    """Half of the images are changed, as torchvision's function changes them; the others are left alone."""
    images, words = _images(400), _words(step, 400)
    changed = 0
    for image, made in zip(images, step.apply(images, words), strict=True):
        wanted = function(image)
        assert torch.equal(made, wanted) or torch.equal(made, image)
        changed += torch.equal(made, wanted)
    assert 140 < changed < 260


def test_sizing() -> None:
    images = _images(2, 40, 60)
    for mode in ("nearest", "bilinear", "bicubic"):
        step = ResizeCenterCrop(size=24, resize=28, interpolation=mode)
        resized = functional.resize(images, [28], v2.InterpolationMode(mode))
        assert torch.equal(step.apply(images, _words(step, 2)), functional.center_crop(resized, [24, 24]))


_SPACES = {
    "auto": (AutoAugment(), v2.AutoAugment()),
    "rand": (RandAugment(num_ops=1, magnitude=13), v2.RandAugment(num_ops=1, magnitude=13)),
    "trivial": (TrivialAugmentWide(), v2.TrivialAugmentWide()),
}


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("size", [(32, 32), (45, 64)])
def test_operations_are_torchvisions(size: tuple[int, int], interpolation: str) -> None:
    mode = v2.InterpolationMode(interpolation)
    kinds = [(name, sign * magnitude) for name, magnitude in [
        ("Identity", 0.0), ("ShearX", 0.21), ("ShearY", 0.3), ("TranslateX", 8.3), ("TranslateY", 13.9),
        ("Rotate", 27.0), ("Brightness", 0.7), ("Color", 0.9), ("Contrast", 0.3), ("Sharpness", 0.8),
    ] for sign in (1, -1)] + [("Posterize", 4.0), ("Posterize", 7.0), ("Solarize", 0.4), ("Solarize", 1.0),
                              ("AutoContrast", 0.0), ("Equalize", 0.0), ("Invert", 0.0)]  # fmt: skip
    images = _images(len(kinds), *size)
    reference: Any = v2.AutoAugment()
    for image, made, (name, magnitude) in zip(images, operate(images, kinds, mode), kinds, strict=True):
        wanted = reference._apply_image_or_video_transform(
            image, name, magnitude, interpolation=mode, fill=reference._fill
        )
        assert torch.equal(made, wanted), (name, magnitude)


# Distributions of parameters


def _same(ours: np.ndarray, theirs: np.ndarray) -> None:
    """A two-sample Kolmogorov-Smirnov test."""
    pvalue: Any = stats.ks_2samp(ours, theirs)[1]
    assert pvalue > LEVEL


def _same_counts(ours: Counter[Any], theirs: Counter[Any]) -> None:
    """A chi-square test of two tables of counts; rare cells are one cell."""
    total = ours + theirs
    common = [kind for kind, count in total.items() if count >= 40]
    rows = [[counts[kind] for kind in common] + [sum(counts.values()) - sum(counts[kind] for kind in common)]
            for counts in (ours, theirs)]  # fmt: skip
    table = np.array(rows)
    pvalue: Any = stats.chi2_contingency(table[:, table.sum(0) > 0])[1]
    assert pvalue > LEVEL


def _params(transform: Any, count: int, height: int, width: int) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    return [transform.make_params([image]) for _ in range(count)]


@pytest.mark.parametrize("size", [(48, 64), (20, 200), (200, 20)])
def test_boxes_of_random_resized_crop(size: tuple[int, int]) -> None:
    step = RandomResizedCrop(224)
    ours = step.boxes(_words(step, 20_000), *size)
    theirs = np.array([[p[name] for name in ("top", "left", "height", "width")]
                       for p in _params(v2.RandomResizedCrop(224), 4000, *size)])  # fmt: skip
    for column in range(4):
        _same(ours[:, column], theirs[:, column])
    _same(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])
    _same(ours[:, 2] / ours[:, 3], theirs[:, 2] / theirs[:, 3])
    assert (ours[:, 0] + ours[:, 2] <= size[0]).all()
    assert (ours[:, 1] + ours[:, 3] <= size[1]).all()


def test_boxes_of_random_erasing() -> None:
    step = RandomErasing(probability=1.0)
    ours = step.boxes(_words(step, 20_000), 32, 48)
    theirs = np.array([[p[name] for name in "ijhw"] for p in _params(v2.RandomErasing(p=1.0), 4000, 32, 48)])
    for column in range(4):
        _same(ours[:, column], theirs[:, column])
    half = RandomErasing()
    assert 9500 < (half.boxes(_words(half, 20_000), 32, 48)[:, 2] > 0).sum() < 10_500


def test_factors_of_color_jitter() -> None:
    step = ColorJitter(brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1)
    params = _params(v2.ColorJitter(0.4, 1.5, 0.2, 0.1), 4000, 8, 8)
    names = ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")
    for ours, name in zip(step.factors(_words(step, 20_000)).T, names, strict=True):
        _same(ours, np.array([p[name] for p in params]))


def test_sigmas_of_gaussian_blur() -> None:
    step = GaussianBlur()
    theirs = np.array([p["sigma"][0] for p in _params(v2.GaussianBlur(23), 4000, 8, 8)])
    _same(step.sigmas(_words(step, 20_000)), theirs)


def test_offsets_and_flips_are_uniform() -> None:
    crop = RandomCrop(size=32, padding=4)
    words = _words(crop, 100_000)
    assert stats.chisquare(np.bincount(np.ravel_multi_index(crop.offsets(words, 32, 32), (9, 9)))).pvalue > LEVEL
    rows = torch.arange(100_000).view(-1, 1, 1, 1).remainder(7).to(torch.uint8)
    images = torch.cat([rows, rows + 100], dim=3)
    flipped = HorizontalFlip().apply(images, _words(HorizontalFlip(), 100_000))[:, 0, 0, 0] >= 100
    assert stats.binomtest(int(flipped.sum()), 100_000).pvalue > LEVEL


@pytest.mark.parametrize("kind", _SPACES)
def test_policies_choose_as_torchvision_does(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same operations, magnitudes and signs, equally often."""
    step, reference = _SPACES[kind]
    ours, theirs = Counter[Any](), Counter[Any]()

    def ours_operate(images: Tensor, kinds: list[tuple[str, float]], interpolation: object) -> Tensor:
        ours.update((name, round(magnitude, 3)) for name, magnitude in kinds)
        return images

    def theirs_operate(image: Tensor, name: str, magnitude: float, **_: object) -> Tensor:
        theirs[name, round(magnitude, 3)] += 1
        return image

    monkeypatch.setattr("gdkd_cache.data.recipes.policies.operate", ours_operate)
    monkeypatch.setattr(reference, "_apply_image_or_video_transform", theirs_operate)
    image = torch.zeros(3, 24, 36, dtype=torch.uint8)
    step.apply(image.expand(40_000, -1, -1, -1), _words(step, 40_000))
    torch.manual_seed(0)
    for _ in range(4000):
        reference(image)
    assert {name for name, _ in ours} == {name for name, _ in theirs}
    assert theirs.keys() <= ours.keys()  # every magnitude of theirs is one of ours, to three decimals
    _same_counts(ours, theirs)


@pytest.mark.parametrize("name", ["cifar10", "imagenet"])
def test_learned_policies(name: str) -> None:
    reference: Any = v2.AutoAugment(v2.AutoAugmentPolicy(name))
    theirs = [tuple((operation, probability, magnitude or 0) for operation, probability, magnitude in pair)
              for pair in reference._policies]  # fmt: skip
    assert policy(name) == theirs


def test_weights_of_augmix() -> None:
    """The image's share is Beta(1, 1); the chains share the rest by Dirichlet(1, 1, 1)."""
    step = AugMix()
    weights = step.weights(_words(step, 20_000))
    assert (weights.sum(1) == 65536).all()
    own = weights[:, 0] / 65536
    assert stats.kstest(own, "uniform").pvalue > LEVEL
    chains = weights[:, 1:] / np.maximum(65536 - weights[:, :1], 1)
    rest = own < 0.9  # where the rest is fine enough for the test
    for chain in chains[rest].T:
        assert stats.kstest(chain, stats.beta(1, 2).cdf).pvalue > LEVEL


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 4.0])
@pytest.mark.parametrize("method", ["mixup", "cutmix"])
def test_shares_of_mixing(method: str, alpha: float) -> None:
    """MixUp's shares are Beta(alpha, alpha) on a grid of 256 levels; CutMix's are torchvision's."""
    mix = Mix(mixup_alpha=alpha) if method == "mixup" else Mix(cutmix_alpha=alpha)
    words = draws(streams(0, "mix", 0, np.arange(20_000, dtype=np.uint64)), range(5))
    images = torch.zeros(20_000, 3, 16, 16, dtype=torch.uint8)
    made, shares = mix.apply(images, images + 255, words)
    if method == "mixup":
        edges = np.concatenate([[0.0], (np.arange(256) + 0.5) / 256, [1.0]])
        wanted = np.diff(stats.beta(alpha, alpha).cdf(edges)) * 20_000
        cells = (
            np.add.reduceat(wanted, range(0, 257, 8)),
            np.add.reduceat(np.bincount(np.rint(shares * 256).astype(int), minlength=257), range(0, 257, 8)),
        )
        dense = cells[0] > 5
        assert ((cells[1][dense] - cells[0][dense]) ** 2 / cells[0][dense]).sum() < stats.chi2(dense.sum()).ppf(
            1 - LEVEL
        )
        pixels = 1 - made[:, 0, 0, 0].numpy() / 255
        assert np.abs(pixels - shares).max() < 1 / 255
    else:
        _same(
            shares, np.array([p["lam_adjusted"] for p in _params(v2.CutMix(alpha=alpha, num_classes=2), 4000, 16, 16)])
        )
        np.testing.assert_allclose(1 - (made[:, 0] == 255).float().mean((1, 2)), shares, atol=1e-6)


def test_mixing_chooses_one_method() -> None:
    mix = Mix(mixup_alpha=1.0, cutmix_alpha=1.0, probability=0.6)
    words = draws(streams(0, "mix", 0, np.arange(4000, dtype=np.uint64)), range(5))
    images = torch.zeros(4000, 3, 16, 16, dtype=torch.uint8)
    made, shares = mix.apply(images, images + 255, words)
    cut = (((made == 0) | (made == 255)).flatten(1).all(1).numpy()) & (shares < 1)
    blended = ~cut & (shares < 1)
    assert 1000 < cut.sum() < 1350
    assert 1050 < blended.sum() < 1350
    assert torch.equal(made[torch.from_numpy(shares == 1)], images[torch.from_numpy(shares == 1)])


# Another size, wrong recipes, files


def test_another_size_has_the_same_boxes() -> None:
    """A view at 20 pixels shows what the view at 40 pixels shows."""
    images = _images(32, 90, 120)
    recipe = open_recipe("imagenet:size=40", 90, 120)
    smaller = recipe.at_size((40, 40), 20)
    words = recipe.words(streams(0, "view", 0, np.arange(32, dtype=np.uint64)))
    large, small = recipe.apply(images, words), smaller.apply(images, words)
    assert small.shape[2:] == (20, 20)
    reduced = functional.resize(large, [20, 20], antialias=True)
    assert (reduced.float() - small.float()).abs().mean() < 2
    assert (reduced.flip(-1).float() - small.float()).abs().mean() > 10
    assert recipe.at_size((40, 40), 40) == recipe
    assert open_recipe("crop-flip", 32, 32).at_size((32, 32), 24).steps[-1] == Resize(24)
    steps = (Resize(40), Cutout(16), GaussianBlur(kernel=9, sigma=(1.0, 2.0)), TrivialAugmentWide())
    scaled = Recipe("x", steps).at_size((40, 40), 20).steps
    assert scaled == (
        Resize(20),
        Cutout(8),
        GaussianBlur(kernel=5, sigma=(0.5, 1.0)),
        TrivialAugmentWide(translate=16.0),
    )
    assert Recipe("x", (ResizeCenterCrop(224, 256),)).at_size((224, 224), 112).steps == (ResizeCenterCrop(112, 128),)
    with pytest.raises(UsageError, match="30x40 have no other size"):
        recipe.at_size((30, 40), 20)


_WRONG = ["cropped", "crop-flip:sise=3", "crop-flip:size=big", "crop-flip:size=0", "none:x=1", "imagenet:size=9999",
          "imagenet-eval:size=64,resize=32", "compat:", "compat:no_such_module:x", "compat:torch:no_such_name",
          "compat:math:pi", "nowhere.json"]  # fmt: skip


@pytest.mark.parametrize("spec", _WRONG)
def test_wrong_specs_are_refused(spec: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_recipe(spec, 32, 32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [(lambda: RandomCrop(size=10**9), r"random_crop: size is 1000000000; it must be int in 1..2048"),
     (lambda: RandomResizedCrop(32, scale=(0.5, 0.2)), "scale is"),
     (lambda: RandomResizedCrop(32, interpolation="lanczos"), "interpolation is 'lanczos'"),
     (lambda: GaussianBlur(kernel=4), "must be odd"),
     (lambda: HorizontalFlip(float("nan")), "probability is nan"),
     (lambda: RandAugment(magnitude=31), "magnitude is 31"),
     (lambda: RandAugment(num_ops=33), "num_ops is 33"),
     (lambda: AutoAugment(policy="svhn"), "policy is 'svhn'"),
     (lambda: Mix(), "at least one must be above 0"),
     (lambda: Mix(mixup_alpha=-1.0), "mixup_alpha is -1.0"),
     (lambda: Mix(mixup_alpha=1.0, mixup_quantiles=(4096, 1)), "257 rising integers"),
     (lambda: Recipe("x", (HorizontalFlip(),) * 33), "has 33 steps"),
     (lambda: Recipe("x", decode_side=0), "decode_side is 0")],
)  # fmt: skip
def test_values_out_of_range_are_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make()


def test_foreign_recipes_are_refused() -> None:
    stored = Recipe("x").to_json()
    for steps in ([{"step": "run_shell", "command": "true"}], [{"step": "cutout", "size": 1, "more": 2}],
                  [{"step": "cutout", "size": "1"}], [{"size": 1}], 7, [7]):  # fmt: skip
        with pytest.raises(CacheError, match="recipe cannot be read"):
            Recipe.from_json(stored | {"steps": steps})
    for change in ({"mix": {"alpha": 1}}, {"mix": 3}, {"decode_side": "big"}):
        with pytest.raises(CacheError, match="recipe cannot be read"):
            Recipe.from_json(stored | change)


def test_recipes_from_files(tmp_path: Path) -> None:
    toml = tmp_path / "mine.toml"
    toml.write_text(
        'decode_side = 300\n[[steps]]\nstep = "random_resized_crop"\nsize = 96\nscale = [0.3, 1.0]\n'
        '[[steps]]\nstep = "horizontal_flip"\n[mix]\nmixup_alpha = 0.2\n'
    )
    recipe = open_recipe(str(toml), 32, 32)
    mix = Mix(mixup_alpha=0.2)
    assert recipe == Recipe("mine", (RandomResizedCrop(96, scale=(0.3, 1.0)), HorizontalFlip()), mix, 300)
    (tmp_path / "mine.json").write_text(json.dumps(recipe.to_json()))
    assert open_recipe(str(tmp_path / "mine.json"), 32, 32) == recipe
    wrong = {
        "steps = 3": "must hold steps",
        "steps": "cannot be read",
        "[[steps]]\nstep = 'x'": "step 0",
        "steps = [3]": "step 0",
        "steps = []\nmix = {alpha = 1}": "mix",
    }
    for text, said in wrong.items():
        toml.write_text(text)
        with pytest.raises(UsageError, match=said) as caught:
            open_recipe(str(toml), 32, 32)
        assert "\n" not in str(caught.value)


def test_a_step_owns_its_draws() -> None:
    """What a step draws does not depend on the steps before it."""
    state = streams(0, "view", 0, np.arange(50, dtype=np.uint64))
    first = Recipe("x", (ColorJitter(0.5), Cutout(8))).words(state)[1]
    second = Recipe("x", (AugMix(), Cutout(8))).words(state)[1]
    assert np.array_equal(first, second)
    assert all(step.num_draws <= 64 for step in (*STEPS, AugMix(width=5), RandAugment(num_ops=32)))
    assert {step.name for step in STEPS} == set(registry.STEPS)
    assert all(dataclasses.is_dataclass(step) for step in STEPS)
