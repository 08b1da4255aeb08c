"""The networks have the literature's sizes; weights round-trip, and foreign ones are refused in one line."""

import json
import pickle
from pathlib import Path

import pytest
import torch

from gdkd_cache.errors import ModelError, UsageError
from gdkd_cache.models.build import build_model
from gdkd_cache.models.weights import ModelCard, load_card, load_model, save_weights

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


def test_weights_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    model = build_model("cnn-s", 10).eval()
    save_weights(model, _CARD, path)
    assert load_card(path) == _CARD
    loaded, checksum = load_model("cnn-s", 10, path)
    assert torch.equal(loaded(torch.ones(1, 3, 8, 8)), model(torch.ones(1, 3, 8, 8)))
    assert checksum.startswith("sha256:")
    assert not loaded.training
    torch.save({"state_dict": model.state_dict()}, tmp_path / "best.pth")
    assert load_card(tmp_path / "best.pth") == _CARD
    assert torch.equal(
        load_model("cnn-s", 10, tmp_path / "best.pth")[0](torch.ones(1, 3, 8, 8)), model(torch.ones(1, 3, 8, 8))
    )


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (self.path,))


def test_weights_cannot_execute(tmp_path: Path) -> None:
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(_Canary(tmp_path / "canary")))
    torch.save({"state_dict": _Canary(tmp_path / "canary")}, tmp_path / "evil2.pth")
    for name in ("evil.pth", "evil2.pth"):
        with pytest.raises(ModelError, match="cannot be read"):
            load_model("cnn-s", 10, tmp_path / name)
    assert not (tmp_path / "canary").exists()


def test_foreign_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    with pytest.raises(ModelError, match="do not exist"):
        load_model("cnn-s", 10, path)
    save_weights(build_model("cnn-s", 10), _CARD, path)
    with pytest.raises(ModelError, match=r"do not fit cnn-s with 20 classes: .* is \[10"):
        load_model("cnn-s", 20, path)
    with pytest.raises(ModelError, match="do not fit resnet8"):
        load_model("resnet8", 10, path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot be read"):
        load_model("cnn-s", 10, path)


@pytest.mark.parametrize("change", [{"mean": [1]}, {"std": [0, 1, 1]}, {"extra": 1}, {"size": None}])
def test_wrong_cards_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    (tmp_path / "a.json").write_text(json.dumps(_CARD.to_json() | change))
    with pytest.raises(ModelError, match="no model card"):
        load_card(tmp_path / "a.safetensors")
