"""The zoo's networks are the public ones: the same tensors by the same names, and the same logits of the same weights.

What is expected was recorded from the public definitions (RepDistiller's, as mdistiller has them), whose tensors were
filled by `filled`, so that neither they nor their weights are needed here.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest
import safetensors.torch
import torch
from filled import filled
from torch import Tensor

from gdkd_cache.errors import ModelError
from gdkd_cache.models.build import build_model, outline_model
from gdkd_cache.models.opening import open_network
from gdkd_cache.models.registry import MODELS
from gdkd_cache.models.weights import load_model
from gdkd_cache.models.zoo.staged import Staged


def _images(side: int) -> Tensor:
    return 5 * filled("images", (2, 3, side, side))


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """A hash of all names and shapes."""
    lines = sorted(f"{key} {list(shape)}" for key, shape in shapes.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def _load_filled(model: torch.nn.Module) -> Staged:
    model.load_state_dict({key: filled(key, shape) for key, shape in _shapes(model).items()})
    return cast(Staged, model.eval())


def _is_near(found: Tensor, expected: list[float]) -> bool:
    return (found - torch.tensor(expected)).abs().max().item() <= 2e-5 * max(map(abs, expected))


# With 100 classes: parameters, a hash of all tensors' names and shapes, the second image's first three logits.
_PUBLIC: dict[str, tuple[int, str, list[float]]] = {
    "resnet8": (83_892, "c7e36ff44943", [-0.0143163, -0.830489, -0.31571]),
    "resnet14": (181_108, "dc881d5570e2", [0.67663, -0.926562, -0.591458]),
    "resnet20": (278_324, "649926fcf624", [1.1323, -2.08747, -0.448482]),
    "resnet32": (472_756, "eee1916dfc5f", [-9.38943, -25.338, -12.99]),
    "resnet44": (667_188, "f532b91b4266", [-68.5485, -151.132, 9.34881]),
    "resnet56": (861_620, "2fac08358d13", [-198.157, -1687.29, 1125.11]),
    "resnet110": (1_736_564, "c6e9176cff1a", [-1.98106e06, 1.01129e06, 1.40956e06]),
    "resnet8x4": (1_233_540, "c7572c24d425", [-0.870799, 0.614082, 0.568849]),
    "resnet32x4": (7_433_860, "632a5be2e9d2", [-15.3099, 13.8661, 5.00503]),
    "ResNet18": (11_220_132, "f6f82589f769", [-0.0268633, 0.270185, 1.42775]),
    "ResNet50": (23_705_252, "1383964ae529", [8.7532, -0.216994, 5.32276]),
    "wrn_16_1": (180_916, "c86622e01c01", [-0.0482047, 0.193379, -0.146452]),
    "wrn_16_2": (703_284, "e6a57f3ddf2b", [-0.683704, 0.0209678, 0.919623]),
    "wrn_40_1": (569_780, "d0752782d532", [3.17761, -3.77454, -5.09123]),
    "wrn_40_2": (2_255_156, "cf299ba03b83", [-5.69513, 0.571229, -2.45883]),
    "vgg8": (3_965_028, "af0a4ac2401e", [-0.0230044, -0.00167525, -0.546967]),
    "vgg11": (9_277_284, "c01653e99717", [0.347626, 0.585923, 0.110935]),
    "vgg13": (9_462_180, "7ff3cbdb2a68", [0.363287, 0.65619, 0.0546399]),
    "vgg16": (14_774_436, "671ffc473361", [0.147671, 0.415902, -0.0932522]),
    "vgg19": (20_086_692, "68d64a6eacb2", [-0.422178, 0.303881, -0.183526]),
    "MobileNetV2": (812_836, "da613af71c09", [-2.45575, -1.6653, 0.701665]),
    "ShuffleV1": (949_258, "a6a7e5aaad50", [5.26031, 8.05012, 3.06338]),
    "ShuffleV2": (1_355_528, "453a84f2a0f1", [0.128672, 0.389681, -0.25315]),
}
_ONE_OF_EACH_KIND = ["resnet8", "ResNet50", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"]
_OF_64_ROWS = {
    "ResNet18": [-0.726658, 0.618906, 1.32432],
    "vgg8": [-0.0607069, 0.0571272, -0.557225],
}


@pytest.mark.parametrize("name", _PUBLIC)
def test_tensors_are_the_public_networks(name: str) -> None:
    model = outline_model(name, 100)
    parameters, listed, _ = _PUBLIC[name]
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert _listed(_shapes(model)) == listed


def test_names_of_tensors() -> None:
    """Some that the hashes stand for."""
    for name, key, shape in [
        ("resnet8x4", "layer1.0.downsample.0.weight", (64, 32, 1, 1)),
        ("resnet110", "layer3.17.bn2.running_var", (64,)),
        ("ResNet50", "layer4.0.shortcut.1.bias", (2048,)),
        ("wrn_40_2", "block2.layer.0.convShortcut.weight", (64, 32, 1, 1)),
        ("vgg13", "block4.3.bias", (512,)),
        ("MobileNetV2", "blocks.5.2.conv.7.num_batches_tracked", ()),
        ("ShuffleV1", "layer1.0.conv3.weight", (216, 18, 1, 1)),
        ("ShuffleV2", "layer2.0.conv5.weight", (116, 116, 1, 1)),
    ]:
        assert _shapes(outline_model(name, 100))[key] == shape


@pytest.mark.parametrize("name", _PUBLIC)
def test_logits_and_features(name: str) -> None:
    """Of each network; of one of each kind in both memory formats."""
    model, images = _load_filled(build_model(name, 100)), _images(32)
    with torch.inference_mode():
        logits, (stages, pooled) = model(images), model.features(images)
        assert _is_near(logits[1, :3], _PUBLIC[name][2])
        assert torch.equal(model.classify(pooled), logits)
        if name in _ONE_OF_EACH_KIND:
            assert _is_near(model(images.to(memory_format=torch.channels_last))[1, :3], _PUBLIC[name][2])
        if name in _OF_64_ROWS:
            assert _is_near(model(_images(64))[1, :3], _OF_64_ROWS[name])
    assert all(stage.ndim == 4 for stage in stages)
    assert len(stages) == (5 if name.startswith(("ResNet", "vgg", "Mobile")) else 4)
    sides = [stage.shape[-1] for stage in stages]
    assert sides == sorted(sides, reverse=True)


def test_the_public_mobilenet_of_imagenet() -> None:
    """mdistiller's student of ResNet50, of 1000 classes and images of 224 pixels."""
    model = _load_filled(build_model("MobileNetV1", 1000))
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_231_976
    assert _listed(_shapes(model)) == "ee294b71f5bb"
    with torch.inference_mode():
        images = _images(224)
        stages, pooled = model.features(images)
        assert [stage.shape[1] for stage in stages] == [32, 128, 256, 512, 1024]
        assert _is_near(model.classify(pooled)[1, :3], [-0.0862014, -0.0246108, 0.5915675])
        assert torch.equal(model(images), model.classify(pooled))


@pytest.mark.parametrize("name", _ONE_OF_EACH_KIND)
def test_a_step_of_training(name: str) -> None:
    """Of a last batch of one image, in bfloat16 with the channels last: each parameter has a gradient and moves."""
    model = build_model(name, 10).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.rand(1, 3, 32, 32).to(memory_format=torch.channels_last))
    torch.nn.functional.cross_entropy(logits.float(), torch.tensor([3])).backward()
    torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1).step()
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert not torch.equal(parameter, old) or not old.any()


def test_any_network_of_the_zoo_is_named() -> None:
    assert [name for name in MODELS if name in _PUBLIC] == list(_PUBLIC)


@pytest.mark.parametrize("save", [{}, {"_use_new_zipfile_serialization": False}])
def test_public_checkpoints(tmp_path: Path, save: dict[str, bool]) -> None:
    """As their writers leave them, and as torch wrote them when it did not count batches yet."""
    model = build_model("wrn_16_1", 100)
    weights = {key: filled(key, shape) for key, shape in _shapes(model).items()}
    counted = {key: value for key, value in weights.items() if "num_batches" in key}
    for left_out in ({}, counted):
        kept = {key: value for key, value in weights.items() if key not in left_out}
        stored = {"epoch": 240, "model": kept, "accuracy": torch.tensor(73.3)}
        torch.save(stored, tmp_path / "ckpt_epoch_240.pth", **save)
        loaded, _ = load_model("wrn_16_1", 100, tmp_path / "ckpt_epoch_240.pth")
        assert _is_near(loaded(_images(32))[1, :3], _PUBLIC["wrn_16_1"][2])
    del weights["block3.layer.1.bn2.running_var"]
    torch.save(weights, tmp_path / "part.pth")
    with pytest.raises(ModelError, match=r"'block3.layer.1.bn2.running_var' is missing"):
        load_model("wrn_16_1", 100, tmp_path / "part.pth")


@pytest.mark.parametrize(
    ("name", "listed", "logits"),
    [
        ("resnet14", "29d3093e6d15", [0.906153, -0.297163, -2.08039]),
        ("resnet8x4", "51ac477e8f06", [-0.749031, 0.123825, -0.0926716]),
    ],
)
def test_weights_of_0_1_0(tmp_path: Path, name: str, listed: str, logits: list[float]) -> None:
    """Its names of tensors, its logits, and the file's checksum, by which a cache knows its teacher."""
    path, model = tmp_path / "best.safetensors", build_model(name, 10)
    assert isinstance(model, Staged)
    shapes = {older: _shapes(model)[today] for older, today in model.older_names.items()}
    assert _listed(shapes) == listed
    weights = {key: filled(key, shape) for key, shape in shapes.items()}
    card = {"name": name, "num_classes": 10, "size": [32, 32], "mean": [0.5] * 3, "std": [0.25] * 3}
    path.write_bytes(safetensors.torch.save(weights, {"gdkd_cache": json.dumps(card)}))
    network = open_network(None, path, 10, device="cpu")
    assert _is_near(network.model(_images(32))[1, :3], logits)
    assert network.description.weights == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    for other in ("resnet20", "cnn-s"):
        with pytest.raises(ModelError, match=f"do not fit {other} with 10 classes"):
            load_model(other, 10, path)
    with pytest.raises(ModelError, match=r"'fc.bias' is \[10\], expected \[20\]"):
        load_model(name, 20, path)
    weights.popitem()
    path.write_bytes(safetensors.torch.save(weights))
    with pytest.raises(ModelError, match=f"do not fit {name}"):
        load_model(name, 10, path)
