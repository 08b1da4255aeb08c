"""The networks have the literature's sizes; what is no network, or takes no such images, is refused in one line."""

from pathlib import Path

import pytest
import torch

from gdkd_cache.errors import ModelError, UsageError
from gdkd_cache.models.build import build_model
from gdkd_cache.models.weights import ModelCard

_CARD = ModelCard(name="cnn-s", num_classes=10, size=(8, 8), mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0), accuracy=0.5)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet8x4", 1.23), ("resnet32x4", 7.43), ("resnet20", 0.28), ("resnet32", 0.47), ("resnet56", 0.86),
     ("resnet110", 1.74)],
)  # fmt: skip
def test_sizes_are_the_literatures(name: str, millions: float) -> None:
    """Parameter counts as in the distillation literature (CIFAR-100)."""
    model = build_model(name, 100)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 100)


@pytest.mark.parametrize("name", ["cnn-s", "cnn-l", "resnet8", "torchvision:resnet18"])
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
