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
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(_FOLDER)!r})\n{code}"]
    ended = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_examples_are_short() -> None:
    examples = list(_FOLDER.glob("*.py"))
    assert {path.stem for path in examples} == {"plain", "lightning_fit", "timm_task", "accelerate_loop"}
    assert all(len(path.read_text().splitlines()) < 40 for path in examples)


_STOPPED = """
import torch, {module}
from pathlib import Path
save, saves = {saver}, []

def stop_late(*given, **named):
    save(*given, **named)
    saves.append(0)
    if len(saves) == {stop}:
        raise SystemExit(0)

{saver} = stop_late
{module}.main(*sys.argv[1:])
"""


def test_the_plain_loop_goes_on(tmp_path: Path, cache: Path) -> None:
    """Stopped in the midst of the second epoch, it ends with the weights of one that was not."""
    printed = _run("import plain; plain.main(*sys.argv[1:])", cache, tmp_path / "whole")
    assert [line.split(":")[0] for line in printed.splitlines()] == ["epoch 1", "epoch 2"]
    _run(_STOPPED.format(module="plain", saver="torch.save", stop=17), cache, tmp_path / "parts")
    assert _loaded(tmp_path / "parts")["loader"]["batch"] == 17 - 12
    assert _run("import plain; plain.main(*sys.argv[1:])", cache, tmp_path / "parts") == printed.splitlines()[1] + "\n"
    _assert_same(_loaded(tmp_path / "parts")["student"], _loaded(tmp_path / "whole")["student"])


_LIGHTNING = """
import torch, lightning_fit
step, told = lightning_fit.Distilled.training_step, []

def training_step(self, batch, index):
    told.append((self.global_step, index, batch[2].view, batch[2].rows.tolist()))
    if len(told) == int(sys.argv[3]):
        raise SystemError
    return step(self, batch, index)

lightning_fit.Distilled.training_step = training_step
model = None
try:
    model = lightning_fit.main(*sys.argv[1:3])
except SystemError:
    pass
torch.save({"told": told, "weights": model and model.state_dict()}, sys.argv[4])
"""


def test_lightning_goes_on(tmp_path: Path, cache: Path) -> None:
    """Its second epoch is ours; stopped at step 17, it goes on from its checkpoint of step 15 to the same weights."""
    _run(_LIGHTNING, cache, tmp_path / "whole", 0, tmp_path / "whole.pt")
    whole = _loaded(tmp_path / "whole.pt")
    data = open_cache(cache).dataset(open_source("digits"))
    wanted = [(said.view, said.rows.tolist()) for epoch in (0, 1) for *_, said in data.loader(epoch, **_ASKED)]
    assert [(view, rows) for _, _, view, rows in whole["told"]] == wanted
    _run(_LIGHTNING, cache, tmp_path / "parts", 18, tmp_path / "first.pt")
    _run(_LIGHTNING, cache, tmp_path / "parts", 0, tmp_path / "rest.pt")
    rest = _loaded(tmp_path / "rest.pt")
    assert rest["told"] == whole["told"][15:]
    _assert_same(rest["weights"], whole["weights"])


def test_timm_takes_a_cached_teacher(cache: Path) -> None:
    printed = _run("import timm_task; timm_task.main(*sys.argv[1:])", cache).splitlines()
    losses = [float(line.rsplit(maxsplit=1)[1]) for line in printed]
    assert [line.split(":")[0] for line in printed] == ["epoch 1", "epoch 2"]
    assert losses[1] < losses[0]


def test_accelerate_goes_on(tmp_path: Path, cache: Path) -> None:
    """Stopped after an epoch, it goes on with the next; in two processes each has half of every batch."""
    code = "import accelerate_loop; accelerate_loop.main(*sys.argv[1:3], epochs=int(sys.argv[3]))"
    whole = _run(code, cache, tmp_path / "whole", 2).splitlines()
    parts = [_run(code, cache, tmp_path / "parts", epochs).strip() for epochs in (1, 2)]
    assert parts == whole
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1"]
    arguments = [str(_FOLDER / "accelerate_loop.py"), str(cache), str(tmp_path / "two")]
    ended = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    assert [line.split(":")[0] for line in ended.stdout.splitlines()] == ["epoch 1", "epoch 2"]


def _loaded(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def _assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """To the bit."""
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
