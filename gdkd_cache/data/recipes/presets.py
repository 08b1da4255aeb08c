"""Recipes by name, and recipes from files."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

from gdkd_cache.data.recipes.compat import open_compat
from gdkd_cache.data.recipes.erasing import Cutout
from gdkd_cache.data.recipes.geometry import HorizontalFlip, RandomCrop, RandomResizedCrop, Resize, ResizeCenterCrop
from gdkd_cache.data.recipes.policies import AutoAugment, RandAugment
from gdkd_cache.data.recipes.recipe import Recipe, mix_from_json, step_from_json
from gdkd_cache.errors import UsageError
from gdkd_cache.spec import parse_spec

RECIPES = ("none", "resize", "crop-flip", "cifar-strong", "imagenet", "imagenet-randaug", "imagenet-eval")
_FILES = {".json": json.loads, ".toml": tomllib.loads}


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
    side = min(height, width)
    crop: dict[str, int | float | str] = {"size": side, "padding": side // 8}
    defaults: dict[str, dict[str, int | float | str]] = {
        "none": {},
        "resize": {"size": side},
        "crop-flip": crop,
        "cifar-strong": crop | {"cutout": max(side // 2, 1)},
        "imagenet": {"size": 224, "decode_side": 0},
        "imagenet-randaug": {"size": 224, "decode_side": 0, "num_ops": 2, "magnitude": 9},
        "imagenet-eval": {"size": 224, "resize": 0, "decode_side": 0},
    }
    values = parse_spec(f"recipe {name}", options, defaults[name])
    return replace(_preset(name, {key: int(value) for key, value in values.items()}), name=name)


def _preset(name: str, values: dict[str, int]) -> Recipe:
    if name == "none":
        return Recipe(name)
    if name == "resize":
        return Recipe(name, (Resize(values["size"]),))
    flip = HorizontalFlip()
    if name in ("crop-flip", "cifar-strong"):
        crop = RandomCrop(size=values["size"], padding=values["padding"])
        strong = (AutoAugment(policy="cifar10"), Cutout(values["cutout"])) if name == "cifar-strong" else ()
        return Recipe(name, (crop, flip, *strong))
    size, decode_side = values["size"], values["decode_side"] or None
    if name == "imagenet-eval":
        resize = values["resize"] or round(size * 256 / 224)
        return Recipe(name, (ResizeCenterCrop(size=size, resize=resize),), decode_side=decode_side)
    steps = (RandomResizedCrop(size), flip)
    if name == "imagenet-randaug":
        steps = (*steps, RandAugment(num_ops=values["num_ops"], magnitude=values["magnitude"]))
    return Recipe(name, steps, decode_side=decode_side)


def _from_file(path: Path) -> Recipe:
    """A file holds `steps`, a list of {step = name, option = value}, and perhaps `name`, `mix` and `decode_side`."""
    try:
        stored: Any = _FILES[path.suffix](path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"recipe {path} cannot be read: {error}") from None
    known = {"name", "steps", "mix", "decode_side"}
    if not isinstance(stored, dict) or not isinstance(stored.get("steps"), list) or stored.keys() - known:
        raise UsageError(f"recipe {path} must hold steps, a list, and may hold name, mix and decode_side")
    steps = []
    for number, fields in enumerate(stored["steps"]):
        try:
            steps.append(step_from_json(fields))
        except UsageError as error:
            raise UsageError(f"recipe {path}, step {number}: {error}") from None
    mix = None
    if stored.get("mix") is not None:
        try:
            mix = mix_from_json(stored["mix"])
        except UsageError as error:
            raise UsageError(f"recipe {path}: {error}") from None
    return Recipe(str(stored.get("name", path.stem)), tuple(steps), mix, stored.get("decode_side"))
