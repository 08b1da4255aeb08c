"""A loss, a codec, a source, a network and a step of a user's own: one file each, outside the package, used by name.

Their fields give help and refusals. A cache that mentions them loads none of them unless the user names them too.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from gdkd_cache_cli.main import main

from gdkd_cache import open_cache
from gdkd_cache.errors import UsageError
from gdkd_cache.losses.base import ForeignLoss, loss_from_json
from gdkd_cache.registry import use

_LOSS = '''
from dataclasses import dataclass

from torch.nn import functional as F

from gdkd_cache.fields import option
from gdkd_cache.losses.base import Loss


@dataclass(frozen=True, kw_only=True)
class Huber(Loss):
    """Huber distance of the logits."""

    delta: float = option(1.0, "where the quadratic part ends", above=0, most=10)

    def value(self, student, teacher, labels, top):
        return F.huber_loss(student, teacher - teacher.mean(-1, keepdim=True), delta=self.delta)
'''
_CODEC = '''
from dataclasses import dataclass

import torch

from gdkd_cache.codec.base import Codec, CodecOptions, Column, Decoded, TopK, check_columns
from gdkd_cache.codec.base import check_rows, class_column, exact_top
from gdkd_cache.fields import option


@dataclass(frozen=True, kw_only=True)
class StepsOptions(CodecOptions):
    """Options of `Steps`."""

    step: float = option(0.01, "what a whole number counts, in logits", above=0, most=1)


@dataclass(frozen=True, kw_only=True)
class Steps(Codec):
    """Logits below the largest, in whole steps."""

    Options = StepsOptions

    step: float

    @classmethod
    def fit(cls, calibration, options, fidelity):
        return cls(num_classes=calibration.num_classes, num_top=calibration.num_top(options), step=options.step)

    def columns(self):
        steps = Column(dtype="int16", shape=(self.num_classes,), fill=-1)
        return {"classes": class_column(self.num_classes, (self.num_top,)), "steps": steps}

    def encode(self, logits, labels):
        top = exact_top(logits, self.num_top)
        steps = ((top.values[:, :1] - logits) / self.step).round().clamp(max=2**15 - 1)
        return {"classes": top.classes.to(torch.uint8), "steps": steps.short()}

    def check(self, columns, labels):
        check_rows(columns["steps"] >= 0, "holds a logit above the largest")
        check_columns(columns, self.num_classes)

    def decode(self, columns, labels, temperature=None):
        logits, classes = columns["steps"].float() * -self.step, columns["classes"].long()
        return Decoded(logits, TopK(logits.gather(-1, classes), classes))
'''
_SOURCE = """
import numpy as np


class Noise:
    classes = ["dark", "light", "grey"]
    digest = "noise-1"

    def __init__(self, text, split):
        generator = np.random.default_rng(len(split))
        self.labels = np.arange(int(text)) % 3
        self.images = generator.integers(0, 256, (int(text), 3, 8, 8), dtype=np.uint8)
        self.keys = [f"{split}/{row}" for row in range(int(text))]

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, row):
        return self.images[row].transpose(1, 2, 0), int(self.labels[row])


def noise(text="96", *, split):
    return Noise(text, split)
"""
_MODEL = """
from torch import nn


class Net(nn.Sequential):
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(3 * 8 * 8, num_classes))
"""
_STEP = '''
from dataclasses import dataclass

import torch

from gdkd_cache.data.recipes.step import Step, chance
from gdkd_cache.fields import option


@dataclass(frozen=True)
class Invert(Step):
    """Invert an image."""

    num_draws = 1
    probability: float = option(0.5, "of inverting", least=0, most=1)

    def apply(self, images, words):
        inverted = torch.from_numpy(chance(words[:, 0], self.probability))[:, None, None, None]
        return torch.where(inverted, 255 - images, images)
'''
_RECIPE = """
[[steps]]
step = "random_crop"
size = 8
padding = 1
[[steps]]
step = "own_step:Invert"
probability = 0.3
"""
_FILES = {"own_loss": _LOSS, "own_codec": _CODEC, "own_source": _SOURCE, "own_model": _MODEL, "own_step": _STEP}
_DATA = "--data own_source:noise --recipe mine.toml --use own_step:Invert"
_TEACHER = "--teacher own_model:Net --weights teacher/best.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files, a teacher trained with them, and its cache."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "code").mkdir()
    for name, code in _FILES.items():
        (folder / "code" / f"{name}.py").write_text(code)
    (folder / "mine.toml").write_text(_RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder / "code")
        _run(f"train --loss ce {_DATA} --student own_model:Net --epochs 1 --out teacher")
        _run(
            f"build {_DATA} {_TEACHER} --accept-teacher --views 2 --codec own_codec:Steps:step=0.005,k=2 "
            "--for own_loss:Huber:delta=0.5 --for kd:temperature=2 --out c.zarr"
        )
    return folder


@pytest.fixture
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In that folder, with the code to be found."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder / "code")
    return folder


def _run(line: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, line.split())
    assert result.exit_code == code, result.output
    return result.output


def test_all_of_them_by_name(inside: Path, tmp_path: Path) -> None:
    """Built, inspected, verified with its teacher, trained from, and repaired to the byte."""
    facts = json.loads(_run("inspect c.zarr --json"))
    assert (facts["codec"], facts["identity"]["codec"]["step"]) == ("own_codec:Steps", 0.005)
    errors = facts["fidelity"]["gradient_error"]
    assert sorted(errors) == ["kd temperature=2.0", "own_loss:Huber temperature=4.0 delta=0.5"]
    assert all(0 < error < 0.01 for error in errors.values())
    verified = _run(f"verify c.zarr --deep {_DATA} {_TEACHER} --rows 32 --use own_codec:Steps --use own_loss:Huber")
    assert "100.00% of the stored top classes are the same" in verified
    train = f"train {_DATA} --cache c.zarr --use own_codec:Steps --student own_model:Net --epochs 2"
    _run(f"{train} --loss own_loss:Huber:delta=0.5 --out {tmp_path}/student")
    first, last = (json.loads(line) for line in (tmp_path / "student/metrics.jsonl").read_text().splitlines())
    assert last["distillation"] < first["distillation"]
    _run(
        f"build {_DATA} {_TEACHER} --first-view 2 --views 1 --codec-from c.zarr --use own_codec:Steps "
        f"--out {tmp_path}/d.zarr"
    )
    _run(f"merge c.zarr {tmp_path}/d.zarr --use own_codec:Steps --out {tmp_path}/all.zarr")
    assert open_cache(tmp_path / "all.zarr").num_views == 3
    stored = (inside / "c.zarr/steps/c/1/0/0").read_bytes()
    (inside / "c.zarr/steps/c/1/0/0").unlink()
    _run(f"repair c.zarr {_DATA} {_TEACHER} --use own_codec:Steps --use own_loss:Huber")
    assert (inside / "c.zarr/steps/c/1/0/0").read_bytes() == stored


def test_help_comes_from_their_fields(inside: Path) -> None:
    said = _run("losses own_loss:Huber")
    assert "own_loss:Huber: Huber distance of the logits" in said
    assert all(text in said for text in ("delta", "1.0", "above 0 and at most 10", "where the quadratic part ends"))
    said = _run("codecs own_codec:Steps")
    assert all(text in said for text in ("step", "0.01", "above 0 and at most 1", "what a whole number counts"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--loss own_loss:Huber:delta=0", "delta is 0.0; it must be above 0 and at most 10"),
        (
            "--loss own_loss:Huber:beta=1",
            "cannot read 'beta=1'; allowed: temperature=4.0, standardize=False, delta=1.0",
        ),
        ("--loss own_loss:Nothing", "'own_loss:Nothing' cannot be imported"),
        ("--loss own_model:Net", "loss 'own_model:Net' is no class that derives from gdkd_cache.losses.base.Loss"),
        ("--loss own_loss:Huber --student own_model:nothing", "'own_model:nothing' cannot be imported"),
        ("--loss own_loss:Huber --data own_source:Noise", "own_source:Noise needs a path"),
        ("--loss own_loss:Huber --use own_codec", "'own_codec' names no code; it must be package.module:name"),
    ],
)
def test_refusals_come_from_their_fields(inside: Path, line: str, said: str) -> None:
    use("own_codec:Steps")
    given = line if "--student" in line else f"{line} --student own_model:Net"
    given = given if "--data" in line else f"{given} --data own_source:noise"
    assert said in _run(f"train {given} --cache c.zarr --recipe mine.toml --epochs 1 --out {inside}/none", 2)
    assert not (inside / "none").exists()


def test_refused_codecs_and_steps(inside: Path) -> None:
    build = f"build --data own_source:noise {_TEACHER} --accept-teacher --views 1 --for kd --out none.zarr"
    assert "step is 2.0; it must be above 0 and at most 1" in _run(f"{build} --codec own_codec:Steps:step=2", 2)
    (inside / "wrong.toml").write_text(_RECIPE.replace("0.3", "1.5"))
    assert "probability is 1.5; it must be float in 0..1" in _run(f"{build} --recipe wrong.toml", 2)


_ELSEWHERE = """
import sys
from gdkd_cache_cli.main import main
for line in sys.stdin.read().splitlines():
    try:
        main(line.split())
    except SystemExit as ended:
        print(line.split()[0], ended.code, sorted(name for name in sys.modules if name.startswith("own_")), flush=True)
"""


def test_a_cache_loads_nothing_that_nobody_named(inside: Path) -> None:
    """In a process whose user names none of it, though it can be found: told apart, and refused with what to type."""
    data = "--data own_source:noise"
    lines = [
        "inspect c.zarr",
        "verify c.zarr",
        f"train --loss kd {data} --cache c.zarr --use own_codec:Steps --student own_model:Net --epochs 1 --out none",
        f"verify c.zarr {_DATA} {_TEACHER} --rows 16",
    ]
    run = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{inside / 'code'}:{':'.join(path for path in sys.path if path)}"},
        check=True,
    )
    ends = [line for line in run.stdout.splitlines() if line.startswith(("inspect ", "verify ", "train "))]
    errors = run.stderr.splitlines()
    assert ends[:2] == ["inspect 0 []", "verify 1 []"]
    assert "codec 'own_codec:Steps' is code that no file may load" in errors[0]
    assert "name it yourself, with --use own_codec:Steps" in errors[0]
    assert ends[2] == "train 1 ['own_codec', 'own_source']"
    assert "the views were made by your own code" in errors[1]
    assert "name it again with --use own_step:Invert" in errors[1]
    assert ends[3].startswith("verify 1 ['own_codec', 'own_model', 'own_source', 'own_step']")
    assert "loss 'own_loss:Huber' is code that no file may load" in errors[-1]
    assert not (inside / "none").exists()


def test_a_foreign_loss_is_kept_as_it_is(folder: Path) -> None:
    """What a manifest says of it goes back into a manifest; it is no loss to train with."""
    stored = {"loss": "nowhere.at_all:Loss", "temperature": 2.0, "words": ["a"], "standardize": True}
    loss = loss_from_json(stored)
    assert isinstance(loss, ForeignLoss)
    assert (loss.to_json(), loss.temperature, loss.standardize) == (stored, 2.0, True)
    assert open_cache(folder / "c.zarr").manifest.identity.request.losses[0]["loss"] == "own_loss:Huber"
    with pytest.raises(UsageError, match="names no code"):
        use("no code")
