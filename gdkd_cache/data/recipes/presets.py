"""Recipes by name, a class each, and recipes from files. The steps check the values."""

import json
import tomllib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gdkd_cache.data.recipes.compat import open_compat
from gdkd_cache.data.recipes.erasing import Cutout
from gdkd_cache.data.recipes.geometry import HorizontalFlip, RandomCrop, RandomResizedCrop, Resize, ResizeCenterCrop
from gdkd_cache.data.recipes.policies import AutoAugment, RandAugment
from gdkd_cache.data.recipes.recipe import Recipe, mix_from_json, step_from_json
from gdkd_cache.data.recipes.registry import RECIPES, STEPS
from gdkd_cache.data.recipes.scaling import ResizeTo, ScaleCrop
from gdkd_cache.data.recipes.step import Step
from gdkd_cache.data.source import is_text
from gdkd_cache.errors import CacheError, UsageError, first_line
from gdkd_cache.fields import check_fields, option, parse_fields
from gdkd_cache.files import read_bounded
from gdkd_cache.limits import LARGEST_SIDE
from gdkd_cache.schema import short

_FILES = {".json": json.loads, ".toml": tomllib.loads}
_FILE_BYTES = 2**20
_NAME_LENGTH = 100


@dataclass(frozen=True, kw_only=True)
class Preset(ABC):
    """A named recipe with settings."""

    def __post_init__(self) -> None:
        check_fields(self, f"recipe {RECIPES.name_of(type(self))}")

    @abstractmethod
    def steps(self, side: int) -> tuple[Step, ...]:
        """Its steps, for images whose smaller side is that long."""

    def recipe(self, side: int) -> Recipe:
        """The recipe, for images whose smaller side is that long."""
        return Recipe(RECIPES.name_of(type(self)), self.steps(side))


@dataclass(frozen=True, kw_only=True)
class Nothing(Preset):
    """Images as they are."""

    def steps(self, side: int) -> tuple[Step, ...]:
        return ()


@dataclass(frozen=True, kw_only=True)
class Resized(Preset):
    """Images as squares."""

    size: int | None = option(None, "Side of the views, in pixels.", unset="the image's smaller side")

    def steps(self, side: int) -> tuple[Step, ...]:
        return (Resize(side if self.size is None else self.size),)


@dataclass(frozen=True, kw_only=True)
class Crop(Preset):
    """Padded crops, for images that are something else in a mirror, such as digits."""

    size: int | None = option(None, "Side of the crops, in pixels.", unset="the image's smaller side")
    padding: int | None = option(None, "Zeros on all sides, in pixels.", unset="an eighth of the image's smaller side")

    def steps(self, side: int) -> tuple[Step, ...]:
        size = side if self.size is None else self.size
        return (RandomCrop(size, side // 8 if self.padding is None else self.padding),)


@dataclass(frozen=True, kw_only=True)
class CropFlip(Crop):
    """Padded crops and flips, as for CIFAR."""

    def steps(self, side: int) -> tuple[Step, ...]:
        return *super().steps(side), HorizontalFlip()


@dataclass(frozen=True, kw_only=True)
class CifarStrong(CropFlip):
    """CropFlip, AutoAugment and Cutout."""

    cutout: int | None = option(None, "Side of the blank square, in pixels.", unset="half of the image's smaller side")

    def steps(self, side: int) -> tuple[Step, ...]:
        cutout = Cutout(max(side // 2, 1) if self.cutout is None else self.cutout)
        return *super().steps(side), AutoAugment(policy="cifar10"), cutout


@dataclass(frozen=True, kw_only=True)
class _Decoded(Preset):
    """Square views of files, which may be decoded at a part of their size."""

    size: int = option(224, "Side of the views, in pixels.", least=1, most=LARGEST_SIDE)
    decode_side: int = option(0, "JPEG files may be decoded smaller, to no less than this shorter side; 0: never.")

    def recipe(self, side: int) -> Recipe:
        return Recipe(RECIPES.name_of(type(self)), self.steps(side), decode_side=self.decode_side or None)


@dataclass(frozen=True, kw_only=True)
class ImageNet(_Decoded):
    """Random resized crops and flips."""

    def steps(self, side: int) -> tuple[Step, ...]:
        return RandomResizedCrop(self.size), HorizontalFlip()


@dataclass(frozen=True, kw_only=True)
class ImageNetRandAug(ImageNet):
    """ImageNet, and RandAugment."""

    num_ops: int = option(2, "How many operations.")
    magnitude: int = option(9, "Their magnitude, of 0 to 30.")

    def steps(self, side: int) -> tuple[Step, ...]:
        return *super().steps(side), RandAugment(num_ops=self.num_ops, magnitude=self.magnitude)


@dataclass(frozen=True, kw_only=True)
class ImageNetEval(_Decoded):
    """The central square of a resized image, as networks are evaluated."""

    resize: int = option(0, "What the shorter side is resized to, in pixels; 0: 256/224 of the size.")

    def steps(self, side: int) -> tuple[Step, ...]:
        return (ResizeCenterCrop(size=self.size, resize=self.resize or round(self.size * 256 / 224)),)


@dataclass(frozen=True, kw_only=True)
class ResizedTo(Preset):
    """Images as rectangles of one size."""

    height: int = option(512, "Of the views, in pixels.", least=1, most=LARGEST_SIDE)
    width: int = option(1024, "Likewise.", least=1, most=LARGEST_SIDE)

    def steps(self, side: int) -> tuple[Step, ...]:
        return (ResizeTo(height=self.height, width=self.width),)


@dataclass(frozen=True, kw_only=True)
class ScaleCropFlip(ResizedTo):
    """Random scales, crops and flips, as for Cityscapes; whole images (`none`) are what networks are evaluated on."""

    scale: tuple[float, float] = option((0.5, 2.0), "Range of the factor.", least=0.01, most=100)
    class_share: float = option(
        1.0, "The largest share of a crop's labelled pixels that one class may have, where it can be.", above=0, most=1
    )

    def steps(self, side: int) -> tuple[Step, ...]:
        crop = ScaleCrop(height=self.height, width=self.width, scale=self.scale, class_share=self.class_share)
        return crop, HorizontalFlip()


def open_recipe(spec: str, height: int, width: int) -> Recipe:
    """Make a recipe from a spec.

    Args:
        spec: a name with options, such as `crop-flip:size=32,padding=4`; a .json or .toml file of steps; or
            `compat:module:name`, a torchvision v2 transform of your own.
        height, width: size of the source's images, or of the first; crop-flip's default size is the smaller side,
            and its padding an eighth of it (4 for 32x32).

    Raises:
        UsageError: an unknown recipe, step or option, a value out of range, or a file that cannot be read.
    """
    name, _, options = spec.partition(":")
    if name == "compat":
        return Recipe(spec, (open_compat(options, height, width),))
    if Path(spec).suffix in _FILES:
        return _from_file(Path(spec))
    if name not in RECIPES:
        raise UsageError(
            f"recipe is {spec!r}; it must be one of {', '.join(RECIPES)}, a .json or .toml file, or compat:module:name"
        )
    return parse_fields(RECIPES.load(name), f"recipe {name}", options).recipe(min(height, width))


def _from_file(path: Path) -> Recipe:
    """A file holds `steps`, a list of {step = name, option = value}, and perhaps `name`, `mix` and `decode_side`."""
    try:
        return _from_table(path, _FILES[path.suffix](read_bounded(path, _FILE_BYTES, "recipe", UsageError).decode()))
    except UsageError:
        raise
    except Exception as error:  # of reading, parsing or making: what a hostile file can raise, RecursionError too
        raise UsageError(f"recipe {path} cannot be read: {first_line(error)}") from None


def _from_table(path: Path, stored: Any) -> Recipe:
    known = {"name", "steps", "mix", "decode_side"}
    if not isinstance(stored, dict) or not isinstance(stored.get("steps"), list) or stored.keys() - known:
        raise UsageError(f"recipe {path} must hold steps, a list, and may hold name, mix and decode_side")
    name = stored.get("name", path.stem)
    if not (is_text(name) and name.isprintable() and len(name) <= _NAME_LENGTH):
        raise UsageError(
            f"recipe {path}: name is {short(name)}; it must be a line of text, {_NAME_LENGTH} letters at most"
        )
    steps = []
    for number, fields in enumerate(stored["steps"]):
        try:
            steps.append(step_from_json(fields, _named))
        except UsageError as error:
            raise UsageError(f"recipe {path}, step {number}: {error}") from None
    mix = None
    if stored.get("mix") is not None:
        try:
            mix = mix_from_json(stored["mix"])
        except UsageError as error:
            raise UsageError(f"recipe {path}: {error}") from None
    return Recipe(name, tuple(steps), mix, stored.get("decode_side"))


def _named(name: str) -> type[Step]:
    """The step of a name that a file holds, perhaps a stranger's: it imports nothing."""
    if name not in STEPS and ":" not in name:
        raise UsageError(f"step is {short(name)}; it must be one of {STEPS.forms()}")
    try:
        return STEPS.known(name)
    except CacheError as error:
        raise UsageError(str(error)) from None
