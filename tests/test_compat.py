"""`compat:` recipes: any torchvision v2 transform replays to the bit, or is refused; a cache never names code."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from small import build_small

from gdkd_cache import open_cache
from gdkd_cache.checking.verify import verify
from gdkd_cache.data.loader import ViewLoader
from gdkd_cache.data.recipes.compat import load
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.source import ArraySource
from gdkd_cache.data.views import ViewRenderer, requests_for
from gdkd_cache.errors import MismatchError, UsageError
from gdkd_cache.models.network import Network

_MODULE = """
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision import transforms as v1

strong = v2.Compose([v2.RandomResizedCrop(8), v2.RandomPerspective(), v2.ColorJitter(0.4, 0.4, 0.4, 0.1)])
tensors = v2.Compose([v2.PILToTensor(), v2.RandomAffine(30, scale=(0.5, 1.5))])

def made():
    return v2.RandomRotation(30)

floats = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
python_random = v1.RandomChoice([v1.RandomHorizontalFlip(), v1.RandomVerticalFlip()])

class Own(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0
    def forward(self, image):
        self.calls += 1
        return image.rotate(90 * (self.calls % 4))

counting = Own()

def failing(image):
    raise RuntimeError("no such luck\\nat all")

number = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "own_transforms.py").write_text(_MODULE)
    sys.path.insert(0, str(tmp_path))
    yield "own_transforms"
    sys.path.remove(str(tmp_path))
    sys.modules.pop("own_transforms", None)


def _pixels(source: ArraySource, recipe: Recipe, batch_size: int, workers: int = 0) -> torch.Tensor:
    loader = ViewLoader(ViewRenderer(source, recipe, 5), num_workers=workers)
    batches = loader.stream(requests_for(1, np.arange(64), batch_size))
    return torch.cat([batch.pixels for batch in batches])


@pytest.mark.parametrize("name", ["strong", "tensors", "made"])
def test_any_transform_replays(digits: ArraySource, name: str) -> None:
    recipe = open_recipe(f"compat:own_transforms:{name}", 8, 8)
    state = torch.get_rng_state()
    expected = _pixels(digits, recipe, 64)
    assert not torch.equal(expected, torch.from_numpy(digits.images[:64]))
    torch.manual_seed(99)
    assert torch.equal(_pixels(digits, recipe, 7), expected)
    torch.set_rng_state(state)
    assert torch.equal(_pixels(digits, recipe, 16), expected)
    assert torch.equal(torch.get_rng_state(), state)  # left as it was


def test_in_workers(digits: ArraySource) -> None:
    recipe = open_recipe("compat:own_transforms:strong", 8, 8)
    assert torch.equal(_pixels(digits, recipe, 16, workers=1), _pixels(digits, recipe, 64))


@pytest.mark.parametrize(
    ("name", "said"),
    [("floats", "gives torch.float32"), ("python_random", "draws from Python's or numpy's"),
     ("counting", "other pixels for the same seed"), ("number", "int cannot be called"),
     ("failing", "fails: RuntimeError: no such luck"), ("nothing", "cannot be imported")],
)  # fmt: skip
def test_what_cannot_be_replayed_is_refused(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        open_recipe(f"compat:own_transforms:{name}", 8, 8)
    assert "\n" not in str(caught.value)


def test_threads_are_refused(digits: ArraySource) -> None:
    from concurrent.futures import ThreadPoolExecutor

    recipe = open_recipe("compat:own_transforms:strong", 8, 8)
    with ThreadPoolExecutor(1) as executor, pytest.raises(UsageError, match="cannot run in a thread"):
        executor.submit(_pixels, digits, recipe, 64).result()


def test_a_cache_never_names_code(tmp_path: Path, digits: ArraySource, teacher: Network) -> None:
    """The user names the same transform again; what the manifest names is never imported."""
    recipe = open_recipe("compat:own_transforms:strong", 8, 8)
    build_small(tmp_path / "c.zarr", digits, teacher, recipe=recipe)
    cache = open_cache(tmp_path / "c.zarr")
    sys.modules.pop("own_transforms", None)
    load.cache_clear()
    with pytest.raises(MismatchError, match="name it again with --recipe"):
        cache.dataset(digits)
    (problem,) = verify(tmp_path / "c.zarr", source=digits).problems
    assert "which no file may load" in problem
    assert "own_transforms" not in sys.modules
    assert cache.dataset(digits, recipe=recipe).replay.exact > 0
    assert not verify(tmp_path / "c.zarr", source=digits, recipe=recipe).problems
    with pytest.raises(MismatchError, match="is not the cache's"):
        cache.dataset(digits, recipe=open_recipe("compat:own_transforms:made", 8, 8))
