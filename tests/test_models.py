"""Networks take images of any size; what is no network, or takes no such images, is refused in one line."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from gdkd_cache_cli.main import main

from gdkd_cache.device import choose_device, laid_out
from gdkd_cache.errors import ModelError, UsageError
from gdkd_cache.models.build import build_model, outline_model
from gdkd_cache.models.network import Network
from gdkd_cache.models.trial import try_student
from gdkd_cache.store.facts import BuildFacts, TeacherFacts


@pytest.mark.parametrize(
    "name",
    ["cnn-s", "cnn-l", "resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "torchvision:resnet18"],
)
@pytest.mark.parametrize("size", [8, 64])
def test_any_size_of_image(name: str, size: int) -> None:
    assert build_model(name, 7).eval()(torch.zeros(1, 3, size, size)).shape == (1, 7)


def test_a_users_own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from torch import nn\ndef net(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))\n"
    )
    (tmp_path / "own_models.py").write_text(code + "def wrong(num_classes): return 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert isinstance(build_model("own_models:net", 5), torch.nn.Sequential)
    with pytest.raises(ModelError, match="must return a torch"):
        build_model("own_models:wrong", 5)
    with pytest.raises(UsageError, match="cannot be imported"):
        build_model("own_models:missing", 5)


@pytest.mark.parametrize("name", ["resnet", "resnet21", "cnn", "torchvision:resnet", "torchvision:os", ":x", "x:"])
def test_unknown_models(name: str) -> None:
    with pytest.raises(UsageError):
        build_model(name, 10)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("torch.nn:Linear", "torch.nn:Linear cannot be called with num_classes"),
        ("os:system", "os:system cannot be called with num_classes"),
        ("os:_exit:1", "os:_exit cannot be called with num_classes"),
        ("builtins:dict:1", "cannot be called with num_classes"),
        ("builtins:dict", "cannot be called with num_classes"),
        ("subprocess:run", "model 'subprocess:run' cannot be built: TypeError: "),
        ("..:x", "it must be one of cnn-s"),
        ("a..b:x", "it must be one of cnn-s"),
        ("os:sep", "model 'os:sep' cannot be called"),
        ("broken_models:net", "'broken_models:net' cannot be imported: ZeroDivisionError: division by zero"),
        ("own_models:fails", "model 'own_models:fails' cannot be built: KeyError: 'x'"),
        ("torchvision:resnet18\n", "torchvision has no classifier, or dense network, 'resnet18\\n'"),
    ],
)
def test_callables_that_are_no_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, said: str) -> None:
    """None is called with what it does not take; all that a user's own code may raise is one line."""
    (tmp_path / "broken_models.py").write_text("1 / 0")
    (tmp_path / "own_models.py").write_text("def fails(num_classes): return {}['x']\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_models", raising=False)
    with pytest.raises((UsageError, ModelError)) as caught:
        build_model(spec, 10)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("torchvision:alexnet", "cannot take 8x8 images: "),
        ("torchvision:vit_b_16", "cannot take 8x8 images: Wrong image height! Expected 224 but got 8!"),
        ("torchvision:inception_v3", "cannot take 8x8 images: "),
        (
            "own_nets:pair",
            "gives a tuple of '0' [2, 10], '1' [2, 10]; several of them could be logits of 10 classes: say",
        ),
        ("own_nets:whole", "gives numbers of torch.int64; it must give one tensor of floating-point logits"),
        ("own_nets:spread", "gives logits [2, 10, 1] for 2 images, expected [2, 10]: the data has 10 classes"),
        ("own_nets:broken", "cannot take 8x8 images: KeyError: 'x'"),
    ],
)
def test_networks_that_do_not_fit_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    """The same line from a training, which leaves nothing behind, as from a build."""
    (tmp_path / "own_nets.py").write_text(_NETS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_nets", raising=False)
    monkeypatch.chdir(tmp_path)
    train = f"train --loss ce --data digits --student {name} --epochs 1 --device cpu --out run"
    result = CliRunner().invoke(main, train.split())
    assert (result.exit_code, f"Error: model {name} {said}" in result.stderr) == (1, True), result.output
    assert not Path("run").exists()
    facts = TeacherFacts(name=name)
    model, cpu = build_model(name, 10).eval(), torch.device("cpu")
    network = Network(model=model, mean=(0.5,) * 3, std=(0.5,) * 3, device=cpu, precision="float32", description=facts)
    with pytest.raises(ModelError) as caught:
        network.tried(10, (8, 8))
    assert f"{name} {said}" in str(caught.value)


_NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, end):
        super().__init__()
        self.layer, self.end = nn.Linear(192, 10), end
    def forward(self, images):
        return self.end(self.layer(images.flatten(1)))

def pair(num_classes): return Net(lambda logits: (logits, logits))
def whole(num_classes): return Net(lambda logits: logits.long())
def spread(num_classes): return Net(lambda logits: logits[..., None])
def broken(num_classes): return Net(lambda logits: {}["x"])
"""


def test_a_batch_of_one_that_cannot_be_normalised() -> None:
    """What fails only in training is said before it begins, and the trial leaves no trace."""
    model = build_model("torchvision:resnet18", 10)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    cpu = torch.device("cpu")
    with pytest.raises(ModelError, match="model x, as it is trained, cannot take 8x8 images: Expected more"):
        try_student("x", model, 10, (8, 8), num_images=1, device=cpu)
    try_student("x", model, 10, (8, 8), num_images=2, device=cpu)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_networks_with_further_heads() -> None:
    """googlenet gives one tensor in training too; its heads are in its weights, and are not trained."""
    model = build_model("torchvision:googlenet", 10)
    images = torch.zeros(2, 3, 64, 64)
    assert model.train()(images).shape == model.eval()(images).shape == (2, 10)
    heads = [parameter for name, parameter in model.named_parameters() if name.startswith("aux")]
    assert heads
    assert not any(parameter.requires_grad for parameter in heads)


def test_outlines_take_no_memory() -> None:
    outline = outline_model("torchvision:resnet18", 10)
    assert all(parameter.is_meta for parameter in outline.parameters())
    assert not any(parameter.is_meta for parameter in build_model("cnn-s", 10).parameters())
    shapes = {name: value.shape for name, value in outline.state_dict().items()}
    assert shapes == {name: value.shape for name, value in build_model("torchvision:resnet18", 10).state_dict().items()}


@pytest.mark.parametrize("name", ["mps", "meta", "xla", "xpu", "cuda:-1", f"cuda:{10**14}", "cuda:4096", "", "x" * 99])
def test_devices_that_are_not_there(name: str) -> None:
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("it is there")
    with pytest.raises(UsageError, match=r"^device "):
        choose_device(name)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"--seed {10**22}", "seed is 10000000000000000000000; it must be int in -9223372036854775807..92233720368547"),
        ("--weight-decay 1e300", "weight_decay is 1e+300; it must be float in 0..1000000"),
        ("--lr 1e300", "lr is 1e+300; it must be above 0 and at most 1000000000"),
        ("--epochs 99999999999", "epochs is 99999999999; it must be int in 1..1000000"),
        ("--batch-size 99999999999", "batch_size is 99999999999; it must be int in 1..1048576"),
        ("--workers 99999", "num_workers is 99999; it must be int in 0..1024"),
        ("--schedule multistep:at=99999999999", "multistep: at is 99999999999; it must be int in 1..1000000"),
        (f"--view-seed {10**22}", "view_seed is 10000000000000000000000; it must be int in"),
        ("--loss kd:temperature=1e300 --cache x", "temperature is 1e+300; it must be float in 0.001..1000000"),
        ("--loss gdkd:w2=1e300 --cache x", "w2 is 1e+300; it must be float in 0..1000000"),
        ("--ce-weight nan", "ce_weight is nan; it must be float in 0..1000000 and finite"),
        ("--device mps", "device is 'mps', which this machine has not; it must be auto, cpu, cuda or cuda:N"),
    ],
)  # fmt: skip
def test_numbers_out_of_all_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    given = f"{line} --epochs 1" if "--epochs" not in line else line
    result = CliRunner().invoke(main, f"train --data digits --student cnn-s --out run {given}".split())
    assert (result.exit_code, said in result.stderr) == (2, True), result.output
    assert not Path("run").exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        np._core._exceptions._ArrayMemoryError((10**9,), np.dtype("f4")),  # pyright: ignore[reportAttributeAccessIssue]
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_full_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Whatever says so, and wherever: a network's trial does not take it for its own fault."""

    def build(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("gdkd_cache.models.zoo.tiny._cnn", build)
    result = CliRunner().invoke(
        main, ["train", "--data", "digits", "--student", "cnn-s", "--epochs", "1", "--out", "run"]
    )
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "Error: this machine's memory is full; try smaller images (--size), or a smaller --batch-size"
    )


def _pooled(num_classes: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(3, num_classes, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())


class _Viewed(torch.nn.Module):
    """As many networks are written: `view` wants the values of a convolution in the order of its sizes."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.convolution, self.head = torch.nn.Conv2d(3, 4, 3, padding=1, stride=8), torch.nn.LazyLinear(num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.convolution(images).view(len(images), -1))


@pytest.mark.parametrize("net", [_pooled, _Viewed])
@pytest.mark.parametrize("side", [16, 31, 32, 64])
def test_the_memory_format_is_the_fastest_that_a_network_takes(net: Any, side: int) -> None:
    cpu, size = torch.device("cpu"), (side, side + 1)
    expected = "channels_last" if side >= 32 and net is _pooled else "contiguous"
    model = net(10)
    model(torch.zeros(1, 3, *size))
    assert try_student("x", model, 10, size, num_images=2, device=cpu) == expected
    facts = TeacherFacts(name="x")
    network = Network(model=model, mean=(0.5,) * 3, std=(0.5,) * 3, device=cpu, precision="float32", description=facts)
    assert network.tried(10, size).memory_format == expected
    built = BuildFacts(precision="float32")
    assert network.as_in(built).tried(10, size).memory_format == "contiguous"
    assert network.as_in(replace(built, memory_format="channels_last")).memory_format == "channels_last"


def test_an_unknown_memory_format_is_refused() -> None:
    with pytest.raises(UsageError, match="memory format is blocked; it must be one of contiguous, channels_last"):
        laid_out(torch.rand(2, 3, 8, 8), "blocked")


def test_code_that_ends_the_process() -> None:
    """A callable of the user's that exits, with whatever code, has built no network."""
    with pytest.raises(ModelError, match="cannot be built: SystemExit"):
        build_model("sys:exit", 10)
