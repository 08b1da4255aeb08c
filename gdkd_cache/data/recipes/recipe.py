"""A recipe: the closed, serialisable list of steps that turns an image into a view."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gdkd_cache.data.recipes.compat import COMPAT
from gdkd_cache.data.recipes.geometry import Resampling, Resize
from gdkd_cache.data.recipes.mixing import Mix
from gdkd_cache.data.recipes.registry import STEPS
from gdkd_cache.data.recipes.scaling import ResizeTo
from gdkd_cache.data.recipes.step import MAX_DRAWS, NEAREST, Step
from gdkd_cache.errors import CacheError, MismatchError, UsageError, first_line
from gdkd_cache.limits import LARGEST_SIDE
from gdkd_cache.schema import short
from gdkd_cache.seeding import Words, draws

_MOST_STEPS = 32


@dataclass(frozen=True)
class Recipe:
    """A named list of steps; all but the name decides the pixels.

    Attributes:
        name: what the user asked for.
        steps: applied in order.
        mix: what is done last, with a partner's image; None for nothing.
        decode_side: JPEG files may be decoded at 1/2, 1/4 or 1/8 of their size, as long as the shorter side keeps
            so many pixels; None decodes them whole.

    Raises:
        UsageError: too many steps, a step with too many draws, or a decode_side out of range.
    """

    name: str
    steps: tuple[Step, ...] = ()
    mix: Mix | None = None
    decode_side: int | None = None

    def __post_init__(self) -> None:
        if len(self.steps) > _MOST_STEPS:
            raise UsageError(f"recipe {self.name} has {len(self.steps)} steps; at most {_MOST_STEPS}")
        if greedy := next((step for step in self.steps if step.num_draws > MAX_DRAWS), None):
            raise UsageError(f"step {greedy.name} draws {greedy.num_draws} words an image; at most {MAX_DRAWS}")
        side = self.decode_side
        if side is not None and not (type(side) is int and 1 <= side <= LARGEST_SIDE):
            raise UsageError(f"recipe {self.name}: decode_side is {side!r}; it must be int in 1..{LARGEST_SIDE}")

    def words(self, state: Words) -> list[Words]:
        """Every step's random words: uint64 [n, num_draws] each, from one stream an image, uint64 [n].

        Step i owns the draws 64 i to 64 i + 63 of the stream, whatever the other steps are.
        """
        counters = [i * MAX_DRAWS + j for i, step in enumerate(self.steps) for j in range(step.num_draws)]
        words = draws(state, counters)
        return np.split(words, np.cumsum([step.num_draws for step in self.steps])[:-1], axis=1) if self.steps else []

    def places(self, state: Words, sizes: np.ndarray) -> list[np.ndarray | None]:
        """Where each step looks in images of these sizes, int64 [n, 2]: as `Step.place`."""
        places = []
        for step, own in zip(self.steps, self.words(state), strict=True):
            places.append(step.place(own, sizes))
            sizes = step.resized(sizes)
        return places

    def nearness(self, places: list[np.ndarray | None], others: list[np.ndarray | None]) -> np.ndarray | None:
        """How much two views show of the same, by their places: int64 [n] in 1..256; None where no step tells."""
        told = [
            step.nearness(own, other)
            for step, own, other in zip(self.steps, places, others, strict=True)
            if own is not None and other is not None
        ]
        if not told:
            return None
        nearness = told[0]
        for factor in told[1:]:
            nearness = np.maximum((nearness * factor + NEAREST // 2) // NEAREST, 1)
        return nearness

    @property
    def num_leading(self) -> int:
        """How many of the steps it takes until images of any size have one size."""
        return max((i + 1 for i, step in enumerate(self.steps) if step.sizing), default=0)

    def apply(self, images: Tensor, words: list[Words], steps: slice = slice(None)) -> Tensor:
        """Augment uint8 [n, 3, height, width] with some of the steps; `words` is of all of them, [n, ...] each.

        Raises:
            UsageError: a step gives something else.
        """
        for step, own in zip(self.steps[steps], words[steps], strict=True):
            images = _applied(step, images, own)
        return images

    def apply_both(
        self, images: Tensor, masks: Tensor, words: list[Words], steps: slice = slice(None)
    ) -> tuple[Tensor, Tensor]:
        """`apply` to images, and the same to their masks, int16 [n, height, width].

        Raises:
            UsageError: as `apply`, or a step gives masks of another size.
        """
        for step, drawn in zip(self.steps[steps], words[steps], strict=True):
            own = step.decided(masks, drawn)
            images, masks = _applied(step, images, own), step.apply_masks(masks, own)
            if masks.dtype != torch.int16 or masks.shape != (len(images), *images.shape[2:]):
                expected = f"int16 {[len(images), *images.shape[2:]]}"
                raise UsageError(
                    f"step {step.name} gives masks {masks.dtype} {list(masks.shape)}; they must be {expected}"
                )
        return images, masks

    def check_targets(self, have_masks: bool) -> None:
        """Check that it is for images that have masks, or have none.

        Raises:
            UsageError: it mixes, decodes smaller, or a step says nothing of masks, and there are some; or a step needs
                them, and there are none. It names what.
        """
        if have_masks and (self.mix is not None or self.decode_side is not None):
            which = "mix" if self.mix is not None else "decode_side"
            raise UsageError(f"recipe {self.name} has {which}, which is not for images with masks; leave it out")
        for step in self.steps:
            if have_masks and not step.takes_masks:
                raise UsageError(
                    f"recipe {self.name}: step {step.name} does not say what becomes of masks (`apply_masks`, or "
                    "`leaves_masks`); leave it out"
                )
            if step.needs_masks and not have_masks:
                raise UsageError(f"recipe {self.name}: step {step.name} looks at masks, and these images have none")

    @property
    def integral(self) -> bool:
        """Whether every device gives the same pixels."""
        return all(step.integral for step in self.steps)

    def num_views(self, height: int, width: int) -> int | None:
        """How many different views one image of that size has; None for too many to matter."""
        if self.mix is not None:
            return None
        outcomes = [step.num_outcomes(height, width) for step in self.steps]
        return None if None in outcomes else int(np.prod([n for n in outcomes if n is not None], dtype=object))

    def evaluation(self, view_size: tuple[int, int]) -> str:
        """The spec of a recipe without augmentation, for networks that are trained on these views."""
        if any(isinstance(step, ResizeTo) for step in self.steps):
            return f"resize-to:height={view_size[0]},width={view_size[1]}"
        resampled = [step for step in self.steps if isinstance(step, Resampling)]
        if not resampled:
            return "none"
        whole = isinstance(resampled[-1], Resize)
        return f"{'resize' if whole else 'imagenet-eval'}:size={view_size[0]}"

    def at_size(self, view_size: tuple[int, int], size: int) -> "Recipe":
        """The same views of another size: boxes stay where they were in the image.

        Where a step resamples, it renders more or fewer pixels, and what follows is scaled; otherwise the finished
        view is resized.

        Args:
            view_size: [height, width] that the recipe gives.
            size: wanted side, in pixels.

        Raises:
            UsageError: the views are not square.
        """
        if view_size[0] != view_size[1]:
            raise UsageError(f"views of {view_size[0]}x{view_size[1]} have no other size; only square ones do")
        if view_size[0] == size:
            return self
        positions = [i for i, step in enumerate(self.steps) if isinstance(step, Resampling)]
        if not positions:
            return replace(self, steps=(*self.steps, Resize(size)))
        last = positions[-1]
        step = self.steps[last]
        assert isinstance(step, Resampling)
        ratio = size / view_size[0]
        later = (step.scaled(ratio) for step in self.steps[last + 1 :])
        return replace(self, steps=(*self.steps[:last], step.at_size(size), *later))

    def same_pixels(self, stored: dict[str, Any]) -> bool:
        """Whether a recipe from a manifest is this one, whatever its name and the description of the user's code.

        A transform's `repr` changes with the library's version; whether its pixels do is what the probes tell.
        """
        return _comparable(json.loads(json.dumps(self.to_json()))) == _comparable(stored)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "steps": [step.to_json() for step in self.steps],
            "mix": None if self.mix is None else self.mix.to_json(),
            "decode_side": self.decode_side,
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "Recipe":
        """Rebuild a recipe from a manifest.

        Raises:
            CacheError: an unknown step or option.
            MismatchError: it holds a step or transform of the user's own, which only the user may name.
        """

        def known(name: str) -> type[Step]:
            try:
                return STEPS.known(name)
            except CacheError:
                if name != COMPAT and ":" not in name:
                    raise
                own = stored["name"] if name == COMPAT else name
                raise MismatchError(
                    f"the views were made by your own code, {own}, which no file may load: name it again with "
                    f"{'--recipe (or recipe=...)' if name == COMPAT else f'--use {own} (or gdkd_cache.use)'}"
                ) from None

        try:
            mix = stored["mix"]
            steps = tuple(step_from_json(fields, known) for fields in stored["steps"])
            return cls(str(stored["name"]), steps, None if mix is None else mix_from_json(mix), stored["decode_side"])
        except MismatchError:
            raise
        except Exception as error:  # of JSON of any form, in which numbers may have any size
            reason = first_line(error)
            raise CacheError(f"the manifest's recipe cannot be read: {reason}; it may need a newer version") from None


def _applied(step: Step, images: Tensor, words: Words) -> Tensor:
    """What a step makes of images, checked."""
    count, images = len(images), step.apply(images, words)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[:2] != (count, 3):
        found = f"{images.dtype} {list(images.shape)}"
        raise UsageError(f"step {step.name} gives {found}; it must give uint8 [{count}, 3, height, width]")
    return images


def _comparable(stored: dict[str, Any]) -> dict[str, Any]:
    steps = stored.get("steps")
    if isinstance(steps, list):
        steps = [step | {"description": None} if isinstance(step, dict) else step for step in steps]
    return stored | {"name": None, "steps": steps}


def step_from_json(fields: object, find: Callable[[str], type[Step]]) -> Step:
    """Make a step from `{"step": name, option: value, ...}`.

    Args:
        fields: such a table.
        find: gives the step of a name; raises what is raised here where there is none.

    Raises:
        UsageError: no name, an unknown option, or a value out of range.
    """
    options = _options("a step", fields)
    name = options.pop("step", None)
    if not isinstance(name, str):
        raise UsageError(f"step is {short(name)}; it must be one of {STEPS.forms()}")
    kind = find(name)
    try:
        return kind(**options)
    except TypeError as error:
        raise UsageError(f"{name}: {first_line(error).split('__init__() ')[-1]}") from None


def mix_from_json(fields: object) -> Mix:
    """Make a mix from its options.

    Raises:
        UsageError: an unknown option, or a value out of range.
    """
    try:
        return Mix(**_options("mix", fields))
    except TypeError as error:
        raise UsageError(f"mix: {first_line(error).split('__init__() ')[-1]}") from None


def _options(what: str, fields: object) -> dict[str, Any]:
    if not isinstance(fields, dict) or not all(isinstance(key, str) for key in fields):
        raise UsageError(f"{what} must be a table of options, not {short(fields)}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


def as_batch(image: np.ndarray) -> Tensor:
    """uint8 [height, width, 3] as uint8 [1, 3, height, width]; its memory stays as it is, which resizes fastest."""
    return torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)[None]
