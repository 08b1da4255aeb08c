"""What is done to a network before it trains, and in which precision: each changes what it says, and nothing else."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gdkd_cache.data.source import ArraySource
from gdkd_cache.device import autocast, float32_products
from gdkd_cache.errors import ModelError, UsageError
from gdkd_cache.models.build import build_model
from gdkd_cache.models.trial import try_student
from gdkd_cache.training import preparing
from gdkd_cache.training.optimization.optimizers import make_optimizer, make_scaler
from gdkd_cache.training.options import TrainOptions
from gdkd_cache.training.preparing import compiled, prepared

_CPU = torch.device("cpu")


def _options(**fields: Any) -> TrainOptions:
    return TrainOptions(**({"student": "cnn-s", "epochs": 1, "out": Path("out"), "lr": 0.01} | fields))


class _Dropping(nn.Module):
    """A network with batch statistics, and dropout, in its blocks."""

    def __init__(self, num_blocks: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout))
            for _ in range(num_blocks)
        )
        self.head = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


def _networks() -> Mapping[str, Callable[[], nn.Module]]:
    return {"dropping": _Dropping} | {name: lambda name=name: build_model(name, 10) for name in ("resnet8", "wrn_16_1")}


def _images(side: int = 32) -> Tensor:
    return torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0))


def _kept(model: nn.Module, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Two steps' gradients, the buffers after them, and the bytes that a forward pass kept for the backward one."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(5)
    model.train()
    amount = 0
    for _ in range(2):
        model.zero_grad()
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(images).square().mean()
        amount = sum(kept.values())
        loss.backward()
    gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    return gradients, dict(model.named_buffers()), amount


@pytest.mark.parametrize("name", _networks())
def test_activation_checkpointing(name: str) -> None:
    """The same gradients, running statistics and names of weights, and less kept between the passes."""
    torch.manual_seed(0)
    plain = _networks()[name]()
    again = prepared(_options(activation_checkpointing=True), copy.deepcopy(plain), _CPU)
    images = _images(16)
    gradients, buffers, amount = _kept(plain, images)
    found, statistics, less = _kept(again, images)
    assert list(again.state_dict()) == list(plain.state_dict())
    assert found.keys() == gradients.keys()
    assert all(torch.equal(found[key], value) for key, value in gradients.items())
    assert all(torch.equal(statistics[key], value) for key, value in buffers.items())
    assert less < 0.7 * amount
    plain.eval()
    assert torch.equal(again.eval()(images), plain(images))


def test_a_copy_of_a_checkpointed_network_is_its_own() -> None:
    """As an average of weights makes one."""
    model = prepared(_options(activation_checkpointing=True), _Dropping(), _CPU)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.blocks.parameters():  # pyright: ignore[reportAttributeAccessIssue]
            parameter.zero_()
    assert not torch.equal(model.eval()(_images(8)), other.eval()(_images(8)))


def test_a_network_without_blocks() -> None:
    with pytest.raises(UsageError, match="model cnn-s has no blocks") as caught:
        prepared(_options(activation_checkpointing=True), build_model("cnn-s", 10), _CPU)
    assert "\n" not in str(caught.value)


def test_sync_batchnorm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused on a CPU, and where there is nothing to convert; else each is converted, with its weights."""
    options = _options(sync_batchnorm=True)
    model = build_model("resnet8", 10)
    with pytest.raises(UsageError, match="sync_batchnorm needs a GPU, and the device is cpu"):
        prepared(options, model, _CPU)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    count = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    made = prepared(options, model, torch.device("cuda"))
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in made.modules()) == count > 0
    assert all(torch.equal(made.state_dict()[key], value) for key, value in before.items())
    with pytest.raises(UsageError, match="has no BatchNorm"):
        prepared(options, nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.device("cuda"))


def test_nothing_is_done_unasked() -> None:
    model = build_model("resnet8", 10)
    assert compiled(_options(), prepared(_options(), model, _CPU)) is model
    assert not any("forward" in vars(module) for module in model.modules())


def _losses(options: TrainOptions, model: nn.Module, run: nn.Module) -> list[float]:
    optimizer, losses = make_optimizer(options, model), []
    images, labels = _images(8), torch.arange(4)
    for _ in range(3):
        loss = F.cross_entropy(run(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _has_compiler() -> bool:
    try:
        compiled(_options(compile=True), nn.Linear(1, 1))
    except UsageError:
        return False
    return True


@pytest.mark.skipif(not _has_compiler(), reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")  # its own
def test_compiled() -> None:
    """The same losses as without, blocks that compute again included; the network's own weights are trained."""
    torch.manual_seed(0)
    plain = _Dropping(1, 0.0)
    model = prepared(_options(activation_checkpointing=True), copy.deepcopy(plain), _CPU)
    names = list(model.state_dict())
    options = _options(compile=True)
    run = compiled(options, model)
    assert run is not model
    found, expected = _losses(options, model.train(), run), _losses(options, plain.train(), plain)
    assert found == pytest.approx(expected, abs=1e-5)
    assert list(model.state_dict()) == names
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-3, atol=1e-4)


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        UsageError, match=r"compile needs a C\+\+ compiler, and there is no no-such-compiler; install it"
    ):
        compiled(_options(compile=True), nn.Linear(1, 1))
    assert preparing.shutil.which("no-such-compiler") is None


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
def test_precisions(precision: str) -> None:
    """float16 and bfloat16 round the logits, and train; gradients of a float16 loss are those without a scale."""
    torch.manual_seed(0)
    options, model = _options(precision=precision), build_model("cnn-s", 10)
    images, labels = _images(8), torch.arange(4)
    exact = model(images)
    optimizer, scaler, losses = make_optimizer(options, model), make_scaler(options, _CPU), []
    with float32_products(precision):
        assert torch.get_float32_matmul_precision() == ("high" if precision == "tf32" else "highest")
        for _ in range(6):
            with autocast(precision, _CPU):
                logits = model(images)
            losses.append(F.cross_entropy(logits.float(), labels))
            optimizer.zero_grad()
            scaler.scale(losses[-1]).backward()
            scaler.step(optimizer)
            scaler.update()
            if len(losses) == 1:
                rounded = precision in ("bfloat16", "float16")
                assert logits.dtype == (getattr(torch, precision) if rounded else torch.float32)
                assert torch.equal(logits, exact) == (not rounded)
                torch.testing.assert_close(logits.float(), exact, rtol=0.05, atol=0.05)
    assert losses[-1] < losses[0]


def test_what_tf32_sets_is_put_back() -> None:
    convolution: Any = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]

    def set_now() -> tuple[str, str]:
        return torch.get_float32_matmul_precision(), convolution.fp32_precision

    def failing() -> None:
        with float32_products("tf32"):
            assert set_now() == ("high", "tf32")
            raise ValueError("stop")

    before = set_now()
    with pytest.raises(ValueError, match="stop"):
        failing()
    assert set_now() == before


class _Viewing(nn.Module):
    """A network that takes the order of its images' values for granted."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 32 * 32, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.view(len(images), -1))


def test_memory_formats(digits: ArraySource) -> None:
    """As asked for; `auto` takes what the network takes."""
    seen: list[bool] = []
    model = build_model("cnn-s", 10)
    model.register_forward_pre_hook(lambda net, given: seen.append(given[0].is_contiguous()))

    def tried(net: nn.Module, memory_format: str) -> str:
        return try_student("x", net, 10, (32, 32), num_images=2, device=_CPU, memory_format=memory_format)

    assert tried(model, "contiguous") == "contiguous"
    assert set(seen) == {True}
    seen.clear()
    assert tried(model, "channels_last") == tried(model, "auto") == "channels_last"
    assert set(seen) == {False}
    assert tried(_Viewing(), "auto") == "contiguous"
    with pytest.raises(ModelError, match=r"x cannot take 32x32 images: .*view"):
        tried(_Viewing(), "channels_last")
