"""The examples of `scripts/examples`, run as they stand, with their libraries."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small import build_small

from gdkd_cache import open_cache, open_source
from gdkd_cache.models.network import Network

_FOLDER = Path(__file__).parents[1] / "scripts/examples"
_ASKED: dict[str, Any] = {"batch_size": 128, "shuffle": True}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, teacher: Network) -> Path:
    """All digits, two views; not to be changed."""
    path = tmp_path_factory.mktemp("examples") / "digits.zarr"
    build_small(path, open_source("digits"), teacher, codec="dense", batch_size=256)
    return path


def _run(code: str, *arguments: object) -> str:
    """What a program prints that can import the examples, in a process with the warnings that libraries give."""
    return _output("-c", f"import sys; sys.path.insert(0, {str(_FOLDER)!r})\n{code}", *arguments)


def _output(*arguments: object) -> str:
    command = [sys.executable, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def _epochs(printed: str) -> list[str]:
    return [line.split(":")[0] for line in printed.splitlines()]


def test_examples_are_short() -> None:
    examples = list(_FOLDER.glob("*.py"))
    assert {path.stem for path in examples} == {"plain", "lightning_fit", "timm_task", "accelerate_loop"}
    assert all(len(path.read_text().splitlines()) < 40 for path in examples)


_PLAIN = """
import torch, plain
whole, parts = sys.argv[2:]
plain.main(sys.argv[1], whole)
save, saves = torch.save, []

def stopping(*given):
    save(*given)
    saves.append(0)
    if len(saves) == 17:
        raise InterruptedError

torch.save = stopping
try:
    plain.main(sys.argv[1], parts)
except InterruptedError:
    assert torch.load(parts)["loader"]["batch"] == 17 - 12
plain.main(sys.argv[1], parts)
"""


def test_the_plain_loop_goes_on(tmp_path: Path, cache: Path) -> None:
    """Stopped in the midst of the second epoch, it ends with the weights of one that was not."""
    printed = _run(_PLAIN, cache, tmp_path / "whole", tmp_path / "parts")
    assert _epochs(printed) == ["epoch 1", "epoch 2", "epoch 1", "epoch 2"]
    lines = printed.splitlines()
    assert lines[:2] == lines[2:]
    _assert_same(*(_loaded(tmp_path / name)["student"] for name in ("parts", "whole")))


_LIGHTNING = """
import torch, lightning_fit
step, told = lightning_fit.Distilled.training_step, []

def training_step(self, batch, index):
    told.append((self.global_step, index, batch[2].view, batch[2].rows.tolist()))
    if len(told) == 24 + 18:
        raise InterruptedError
    return step(self, batch, index)

lightning_fit.Distilled.training_step = training_step
whole = lightning_fit.main(sys.argv[1], sys.argv[2])
try:
    lightning_fit.main(sys.argv[1], sys.argv[3])
except InterruptedError:
    parts = lightning_fit.main(sys.argv[1], sys.argv[3])
torch.save({"told": told, "whole": whole.state_dict(), "parts": parts.state_dict()}, sys.argv[4])
"""


def test_lightning_goes_on(tmp_path: Path, cache: Path) -> None:
    """Its second epoch is ours; stopped at step 17, it goes on from its checkpoint of step 15 to the same weights."""
    _run(_LIGHTNING, cache, tmp_path / "whole", tmp_path / "parts", tmp_path / "told.pt")
    found = _loaded(tmp_path / "told.pt")
    whole, rest = found["told"][:24], found["told"][24 + 18 :]
    data = open_cache(cache).dataset(open_source("digits"))
    wanted = [(said.view, said.rows.tolist()) for epoch in (0, 1) for *_, said in data.loader(epoch, **_ASKED)]
    assert [(view, rows) for _, _, view, rows in whole] == wanted
    assert [index for _, index, _, _ in whole] == [*range(12)] * 2
    assert rest == whole[15:]
    _assert_same(found["parts"], found["whole"])


def test_timm_takes_a_cached_teacher(cache: Path) -> None:
    printed = _run("import torch, timm_task; torch.manual_seed(0); timm_task.main(sys.argv[1])", cache)
    assert _epochs(printed) == ["epoch 1", "epoch 2"]
    first, second = (float(line.rsplit(maxsplit=1)[1]) for line in printed.splitlines())
    assert second < first


_ACCELERATE = """
import accelerate_loop
accelerate_loop.main(sys.argv[1], sys.argv[2])
for epochs in (1, 2):
    accelerate_loop.main(sys.argv[1], sys.argv[3], epochs=epochs)
"""


def test_accelerate_goes_on(tmp_path: Path, cache: Path) -> None:
    """Stopped after an epoch, it goes on with the next; of two processes, each takes half of every epoch."""
    lines = _run(_ACCELERATE, cache, tmp_path / "whole", tmp_path / "parts").splitlines()
    assert len(lines) == 4
    assert lines[:2] == lines[2:]
    launch = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1")
    assert _epochs(_output(*launch, _FOLDER / "accelerate_loop.py", cache, tmp_path / "two")) == ["epoch 1", "epoch 2"]


def _loaded(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def _assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """To the bit."""
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
