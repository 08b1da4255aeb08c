"""A user's own source and step, each in a file outside the package, are used by name; a cache never names them."""

import json
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from gdkd_cache_cli.main import main
from small import build_small

import gdkd_cache
from gdkd_cache import open_cache, open_source, registry
from gdkd_cache.checking.verify import verify
from gdkd_cache.data.loader import ViewLoader, default_num_workers
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.recipes.recipe import Recipe
from gdkd_cache.data.recipes.registry import STEPS
from gdkd_cache.data.source import ArraySource, Source, settle
from gdkd_cache.data.sources.registry import SOURCES, takes
from gdkd_cache.data.views import ViewRenderer, requests_for
from gdkd_cache.errors import CacheError, MismatchError, SourceError, UsageError
from gdkd_cache.models.network import Network
from gdkd_cache.models.normalization import IMAGENET

_SOURCE = """
import numpy as np


class Noise:
    reads = 0

    def __init__(self, count="40", *, split):
        self.keys = [f"{split}/{row}" for row in range(int(count))]
        self.classes = [str(label) for label in range(10)]
        self.digest = f"noise-1/{count}/{split}"

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, row):
        Noise.reads += 1
        return np.random.default_rng(row).integers(0, 256, (8, 8, 3), dtype=np.uint8), row % 10


def one_file(path):
    return Noise(split=path)


def numbers():
    return [1, 2, 3]


three = 3
"""

_STEP = """
from dataclasses import dataclass

import torch

from gdkd_cache.data.recipes.step import Step
from gdkd_cache.fields import option
from gdkd_cache.seeding import below


@dataclass(frozen=True)
class Brighter(Step):
    most: int = option(40, "The most that is added.", least=0, most=255)

    @property
    def num_draws(self):
        return 1

    def apply(self, images, words):
        more = torch.from_numpy(below(words[:, 0], self.most + 1))[:, None, None, None]
        return (images + more).clamp(max=255).to(torch.uint8)


@dataclass(frozen=True)
class Floats(Brighter):
    def apply(self, images, words):
        return images / 255


@dataclass(frozen=True)
class Greedy(Brighter):
    @property
    def num_draws(self):
        return 65
"""

_RECIPE = 'steps = [{step = "random_crop", size = 8, padding = 1}, {step = "own_step:Brighter", most = 90}]\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the user's code, which this process has not imported yet."""
    (tmp_path / "own_source.py").write_text(_SOURCE)
    (tmp_path / "own_step.py").write_text(_STEP)
    (tmp_path / "mine.toml").write_text(_RECIPE)
    monkeypatch.syspath_prepend(str(tmp_path))
    _forget(monkeypatch)
    yield tmp_path
    for name in ("own_source", "own_step"):
        sys.modules.pop(name, None)


def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a new process knows of the user's code."""
    monkeypatch.setattr(registry, "_own", {})
    for name in ("own_source", "own_step"):
        sys.modules.pop(name, None)


def _pixels(source: Source, recipe: Recipe, workers: int) -> torch.Tensor:
    loader = ViewLoader(ViewRenderer(settle(source), recipe, 5), num_workers=workers)
    return torch.cat([batch.pixels for batch in loader.stream(requests_for(1, np.arange(40), 16))])


# Sources


def test_a_source_by_name() -> None:
    source = open_source("own_source:Noise")
    assert (source.name, len(source), source.digest) == ("Noise", 40, "noise-1/40/train")
    assert source.labels.tolist() == [row % 10 for row in range(40)]
    assert len(open_source("own_source:Noise:17", split="test")) == 17
    assert open_source("own_source:one_file:somewhere").keys[0] == "somewhere/0"
    assert takes("own_source:Noise:17", "split")
    assert not takes("own_source:one_file:somewhere", "split")


def test_what_it_does_not_offer_is_none() -> None:
    """And its labels are read once."""
    source = open_source("own_source:Noise")
    reads = sys.modules["own_source"].Noise.reads
    assert reads == 40
    assert settle(source) is source
    assert source.images is source.shard_starts is source.remote is None
    assert not source.scales
    assert source.mean == IMAGENET.mean
    assert default_num_workers(source) > 0
    assert sys.modules["own_source"].Noise.reads == reads


class _Offering:
    """A source of the user's own that offers all that one may."""

    name, mean, std = "all", [0.1, 0.2, 0.3], [1.0, 2.0, 3.0]
    keys, classes, digest = ("a", "b"), ("x", "y"), "1"
    labels = np.array([1, 0], np.uint8)
    images = np.zeros((2, 3, 4, 4), np.uint8)
    shard_starts = np.array([0, 1, 2])

    def __len__(self) -> int:
        return 2

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        raise AssertionError("not needed: labels and images are there")

    def decode(self, row: int, side: int) -> np.ndarray:
        return np.full((side, side, 3), row, np.uint8)

    @property
    def remote(self) -> "_Offering":
        return self

    def hold(self, shard: int) -> Future[None]:
        return Future()

    def release(self, shard: int) -> None:
        pass


def test_what_it_offers_is_used() -> None:
    given = _Offering()
    source = settle(given)
    assert source.name == "all"
    assert (source.mean, source.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert (source.labels.tolist(), source.labels.dtype) == ([1, 0], np.int64)
    assert source.images is given.images
    assert source.shard_starts is given.shard_starts
    assert source.remote is given
    assert source.scales
    assert source.decode(1, 5).shape == (5, 5, 3)
    assert settle(pickle.loads(pickle.dumps(source))).digest == "1"


def test_ours_offer_what_they_should(digits: ArraySource) -> None:
    assert settle(digits) is digits
    assert digits.images.shape == (256, 3, 8, 8)
    assert digits.shard_starts is digits.remote is None
    assert all(callable(SOURCES.load(name)) for name in SOURCES)


@pytest.mark.parametrize(
    ("spec", "options", "error", "said"),
    [
        ("own_source:Noise:", {}, UsageError, "own_source:Noise needs a path after the colon"),
        ("own_source:one_file", {}, UsageError, "own_source:one_file needs a path after the colon"),
        ("own_source:numbers:7", {}, UsageError, "own_source:numbers takes no path after a colon"),
        ("own_source:Noise", {"stream": True}, UsageError, "own_source:Noise takes no --stream; leave it out"),
        ("own_source:Noise", {"download": True}, UsageError, "takes no --download"),
        ("own_source:Noise", {"local_copy": "x"}, UsageError, "takes no --local-copy"),
        ("digits", {"download": True}, UsageError, "digits takes no --download"),
        ("own_source:nothing", {}, UsageError, "cannot be imported"),
        ("own_source:three", {}, UsageError, "cannot be called"),
        ("own_source:numbers", {}, SourceError, "list given as data is no source: it must have keys"),
        ("own_source:Noise:0", {}, SourceError, "0 rows"),
    ],
)
def test_what_is_no_source_is_refused(spec: str, options: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        open_source(spec, **options)
    assert "\n" not in str(caught.value)


# Steps


def _recipe(folder: Path) -> Recipe:
    """What the file says, once its code is named."""
    for name in re.findall(r"own_step:\w+", (folder / "mine.toml").read_text()):
        gdkd_cache.use(name)
    return open_recipe(str(folder / "mine.toml"), 8, 8)


def test_a_step_by_name(folder: Path) -> None:
    recipe = _recipe(folder)
    crop, step = recipe.steps
    assert step.to_json() == {"step": "own_step:Brighter", "most": 90}
    assert STEPS.name_of(type(crop)) == "random_crop"
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe  # named in this process
    words = np.full((2, 1), 2**64 - 1, np.uint64)
    assert step.apply(torch.tensor([0, 200], dtype=torch.uint8).view(2, 1, 1, 1), words).flatten().tolist() == [90, 255]


def test_in_workers(folder: Path) -> None:
    """Source and step go to a worker, and give the same pixels there."""
    source, recipe = open_source("own_source:Noise"), _recipe(folder)
    assert torch.equal(_pixels(source, recipe, workers=1), _pixels(source, recipe, workers=0))
    assert not torch.equal(_pixels(source, recipe, workers=0), _pixels(source, Recipe("x", recipe.steps[:1]), 0))


def test_a_cache_never_names_code(
    folder: Path, digits: ArraySource, teacher: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "c.zarr"
    build_small(path, digits, teacher, recipe=_recipe(folder))
    _forget(monkeypatch)
    cache = open_cache(path)
    with pytest.raises(MismatchError, match=r"own_step:Brighter, which no file may load: name it again with --use"):
        cache.dataset(digits)
    (problem,) = verify(path, source=digits).problems
    assert "which no file may load" in problem
    with pytest.raises(UsageError, match=r"own_step:Brighter' is code that no file may load.*--use own_step:Brighter"):
        open_recipe(str(folder / "mine.toml"), 8, 8)
    assert "own_step" not in sys.modules
    recipe = _recipe(folder)
    assert cache.dataset(digits, recipe=recipe).replay.exact > 0
    assert not verify(path, source=digits, recipe=recipe).problems
    with pytest.raises(MismatchError, match="is not the cache's"):
        cache.dataset(digits, recipe=replace(recipe, steps=recipe.steps[:1]))


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ('"own_step:Brighter", most = 256', r"step 0: own_step:Brighter: most is 256; it must be int in 0\.\.255"),
        ('"own_step:Brighter", least = 1', "unexpected keyword argument 'least'"),
        ('"own_step:option"', "is no class that derives from gdkd_cache.data.recipes.step.Step"),
        ('"own_step:nothing"', "cannot be imported"),  # as `use` says
        ('"Brighter"', "must be one of random_crop, .*, package.module:name"),
        ('"compat"', "must be one of random_crop"),
        ('"own_step:Greedy"', "own_step:Greedy draws 65 words an image; at most 64"),
    ],
)
def test_wrong_steps_are_refused(folder: Path, step: str, said: str) -> None:
    (folder / "mine.toml").write_text(f"[[steps]]\nstep = {step}\n".replace(", ", "\n"))
    with pytest.raises(UsageError, match=said) as caught:
        _recipe(folder)
    assert "\n" not in str(caught.value)


def test_a_step_gives_images(folder: Path, digits: ArraySource) -> None:
    (folder / "mine.toml").write_text('[[steps]]\nstep = "own_step:Floats"\n')
    with pytest.raises(UsageError, match=r"own_step:Floats gives torch.float32 .*; it must give uint8 \[16, 3, "):
        _pixels(digits, _recipe(folder), workers=1)


@pytest.mark.parametrize(
    "fields",
    [{"step": "random_erasing", "scale": 0.5}, {"step": "random_erasing", "scale": [0.5]},
     {"step": "random_erasing", "scale": [0.1, 0.2, 0.3]}, {"step": "random_erasing", "scale": "ab"},
     {"step": "random_erasing", "scale": [[0.1], 0.2]}, {"step": "horizontal_flip", "probability": 10**400},
     {"step": "horizontal_flip", "probability": True}, {"step": "cutout", "size": 3.0}, {"step": ["cutout"]}],
)  # fmt: skip
def test_hostile_values_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(CacheError, match="recipe cannot be read"):
        Recipe.from_json(Recipe("x").to_json() | {"steps": [fields]})


# Both


def test_the_command_line(folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(line: str, code: int = 0) -> str:
        _forget(monkeypatch)
        result = CliRunner().invoke(main, line.format(folder=folder, weights=weights).split())
        assert result.exit_code == code, result.output
        return result.output

    data = "--data own_source:Noise:60"
    run(
        f"build {data} --accept-teacher --teacher cnn-s --weights {{weights}} --views 2 --out {{folder}}/c "
        "--recipe {folder}/mine.toml --use own_step:Brighter"
    )
    assert '"own_step:Brighter"' in run("inspect {folder}/c --json").replace("\n", "")
    run(f"verify {{folder}}/c {data} --recipe {{folder}}/mine.toml --use own_step:Brighter")
    run(f"verify {{folder}}/c {data} --use own_step:Brighter")
    train = f"train --loss kd {data} --cache {{folder}}/c --student cnn-s --epochs 1 --workers 0 --out {{folder}}/s"
    assert "name it again with --use own_step:Brighter" in run(train, 1)
    assert "that no file may load" in run(f"{train} --recipe {{folder}}/mine.toml", 2)
    run(f"{train} --use own_step:Brighter")
    run(f"eval {data} --weights {{folder}}/s/best.safetensors --workers 0")
    refused = run("train --loss ce --data own_source:one_file:x --student cnn-s --epochs 1 --out {folder}/t", 2)
    assert "own_source:one_file:x has no test split" in refused


def test_names_cost_nothing() -> None:
    """The registries of sources, steps and recipes load nothing that takes time."""
    code = (
        "import sys, types\n"
        "package = types.ModuleType('gdkd_cache')\n"
        f"package.__path__ = {list(gdkd_cache.__path__)!r}\n"
        "sys.modules['gdkd_cache'] = package\n"  # without its own imports
        "from gdkd_cache.data.sources.registry import SOURCES\n"
        "from gdkd_cache.data.recipes.registry import RECIPES, STEPS\n"
        "print(SOURCES.forms(), list(RECIPES), list(STEPS), {'torch', 'numpy', 'PIL'} & sys.modules.keys())\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("digits, cifar10:PATH, cifar100:PATH,")
    assert ended.stdout.rstrip().endswith("set()")
