"""`compat:` recipes: any torchvision v2 transform, seeded for each sample, for everything that no step covers."""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gdkd_cache.data.recipes.step import Step
from gdkd_cache.errors import UsageError, first_line
from gdkd_cache.fields import option
from gdkd_cache.seeding import Words

COMPAT = "compat"
"""What its step is called in a manifest; no file can name it."""


@dataclass(frozen=True)
class Compat(Step):
    """A user's transform of a PIL image; draws from torch's default generator, which is seeded and then restored."""

    sizing: ClassVar[bool] = True
    transform: str = option(help="`module:name` of the transform, or of a function without arguments that makes it.")
    description: str = option(help="Its `repr`, for people.")

    @property
    def name(self) -> str:
        return COMPAT

    @property
    def num_draws(self) -> int:
        return 1

    def apply(self, images: Tensor, words: Words) -> Tensor:
        if threading.current_thread() is not threading.main_thread():
            raise UsageError(f"compat:{self.transform} cannot run in a thread: threads share torch's generator")
        transform = load(self.transform)
        views = []
        for image, seed in zip(images, (words[:, 0] >> np.uint64(32)).tolist(), strict=True):
            views.append(_run(self.transform, transform, image.numpy().transpose(1, 2, 0), seed))
        return torch.stack(views)


def open_compat(path: str, height: int, width: int) -> Compat:
    """Import a transform, and try whether it can be replayed.

    Args:
        path: `module:name`.
        height, width: of the images, for the trial.

    Raises:
        UsageError: it cannot be imported, gives no uint8 image, draws from other generators than torch's, or gives
            different pixels for one seed.
    """
    transform = load(path)
    pixels = np.random.Generator(np.random.Philox(0)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for seed in range(8):
        python, numpy = random.getstate(), np.random.get_state(legacy=False)
        first = _run(path, transform, pixels, seed)
        if random.getstate() != python or str(np.random.get_state(legacy=False)) != str(numpy):
            raise UsageError(
                f"compat:{path} draws from Python's or numpy's global generator and cannot be replayed; use "
                "torchvision.transforms.v2 (its v1 RandomChoice and RandomOrder do this)"
            )
        if not torch.equal(first, _run(path, transform, pixels, seed)):
            raise UsageError(f"compat:{path} gives other pixels for the same seed and cannot be replayed")
    return Compat(transform=path, description=repr(transform))


def _run(path: str, transform: Callable[[Image.Image], Any], pixels: np.ndarray, seed: int) -> Tensor:
    generator = torch.default_generator
    before = generator.get_state()
    try:
        generator.manual_seed(seed)
        view = transform(Image.fromarray(pixels))
    except Exception as error:
        raise UsageError(f"compat:{path} fails: {type(error).__name__}: {first_line(error)}") from error
    finally:
        generator.set_state(before)
    if isinstance(view, Image.Image):
        view = torch.from_numpy(np.array(view.convert("RGB"))).permute(2, 0, 1)
    if not isinstance(view, Tensor) or view.dtype != torch.uint8 or view.ndim != 3 or view.shape[0] != 3:
        found = f"{view.dtype} {list(view.shape)}" if isinstance(view, Tensor) else type(view).__name__
        raise UsageError(
            f"compat:{path} gives {found}; a view is a PIL image or uint8 [3, height, width]: leave conversions to "
            "float and normalisation out, teacher and student bring their own"
        )
    return view.as_subclass(Tensor).contiguous()


@lru_cache(maxsize=4)
def load(path: str) -> Callable[[Image.Image], Any]:
    """The transform that a user named."""
    module, _, name = path.partition(":")
    try:
        found = getattr(import_module(module), name)
    except Exception as error:  # of a module that does not exist, or of the user's own code
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UsageError(f"recipe compat:{path} cannot be imported ({reason}); it is compat:module:name") from error
    if isinstance(found, type) or (callable(found) and not hasattr(found, "forward") and _takes_nothing(found)):
        try:
            found = found()
        except Exception as error:
            raise UsageError(
                f"recipe compat:{path} cannot be made without arguments ({first_line(error)}); name a transform, or a "
                "function that makes one"
            ) from error
    if not callable(found):
        raise UsageError(f"recipe compat:{path} is no transform: {type(found).__name__} cannot be called")
    return found


def _takes_nothing(function: Callable[..., Any]) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and code.co_argcount == 0
