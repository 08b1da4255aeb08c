"""Networks by name, their libraries' weights and what is known of how they see: through every command."""

import hashlib
import json
import logging
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner, Result
from gdkd_cache_cli.main import main
from PIL import Image

from gdkd_cache import open_cache
from gdkd_cache.errors import ModelError, UsageError
from gdkd_cache.models.build import build_model
from gdkd_cache.models.network import Network
from gdkd_cache.models.opening import open_network
from gdkd_cache.models.outputs import pick_logits
from gdkd_cache.models.weights import load_card

_CPU = ["--device", "cpu"]


def _run(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with images of 40x40, 24 of each of three classes, and no network."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog", "owl"):
            (tmp_path / f"data/{split}/{name}").mkdir(parents=True)
            for i in range(24 if split == "train" else 4):
                pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / f"data/{split}/{name}/{i}.png")
    monkeypatch.chdir(tmp_path)

    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            raise OSError("no network in tests")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)
    return tmp_path


def _all_commands(name: str, weights: object, recipe: str) -> dict[str, Any]:
    """A teacher and a student of one name through plan, build, verify, train and eval; the cache's teacher."""
    data = ("--data", "imagefolder:data")
    teacher = ("--teacher", name, "--weights", weights, *_CPU)
    here = ("--workers", 0)
    views = ("--recipe", recipe, "--views", 1, "--for", "kd:temperature=1", *here)
    assert "<- build takes this" in _run("plan", "--accept-teacher", *data, *teacher, *views).stdout
    _run("build", "--accept-teacher", *data, *teacher, *views, "--codec", "dense", "--out", "a.zarr")
    _run("verify", "a.zarr", *data, *teacher, "--rows", 16)
    train = ("train", *data, "--student", name, *_CPU, "--epochs", 1, "--batch-size", 32, "--threads", 1, *here)
    _run(*train, "--loss", "kd:temperature=1", "--cache", "a.zarr", "--out", "student")
    _run("eval", *data, "--weights", "student/best.safetensors", *_CPU, *here)
    assert "gdkd-cache" in Path("a.zarr/README.md").read_text()
    return json.loads(_run("inspect", "a.zarr", "--json").stdout)["identity"]["teacher"]


def test_timm_through_every_command(folder: Path) -> None:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    torch.save({"state_dict": build_model("timm:test_resnet", 3).state_dict()}, "teacher.pth")
    teacher = _all_commands("timm:test_resnet", "teacher.pth", "imagenet:size=160")
    assert teacher == {
        "name": "timm:test_resnet",
        "weights": f"sha256:{hashlib.sha256(Path('teacher.pth').read_bytes()).hexdigest()}",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "accuracy": None,
        "size": [160, 160],
        "interpolation": "bilinear",
        "stated_by": "timm's pretrained_cfg",
    }
    said = "sees  mean 0.5 0.5 0.5, std 0.5 0.5 0.5, made for 160x160, bilinear (as said by timm's"
    assert said in _run("inspect", "a.zarr").stdout
    assert said in Path("a.zarr/README.md").read_text()


@pytest.fixture
def published(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of torchvision's, three classes, where torch keeps those that it has fetched."""
    torch.manual_seed(0)
    monkeypatch.setenv("TORCH_HOME", str(folder / "torch"))
    kept = folder / "torch/hub/checkpoints"
    kept.mkdir(parents=True)
    torch.save(build_model("torchvision:mobilenet_v3_small", 3).state_dict(), kept / "a.pth")
    checksum = hashlib.sha256((kept / "a.pth").read_bytes()).hexdigest()
    path = (kept / "a.pth").rename(kept / f"small-{checksum[:8]}.pth")
    chosen = torchvision.models.MobileNet_V3_Small_Weights.IMAGENET1K_V1.value
    monkeypatch.setattr(chosen, "url", f"https://example.invalid/{path.name}")
    monkeypatch.setattr(chosen, "meta", {**chosen.meta, "categories": ["cat", "dog", "owl"]})
    return path


def test_torchvision_through_every_command(published: Path) -> None:
    teacher = _all_commands("torchvision:mobilenet_v3_small", "DEFAULT", "imagenet:size=224")
    assert teacher["weights"] == f"sha256:{hashlib.sha256(published.read_bytes()).hexdigest()}"
    assert (teacher["size"], teacher["interpolation"]) == ([224, 224], "bilinear")
    assert (teacher["mean"], teacher["stated_by"]) == ([0.485, 0.456, 0.406], "torchvision's IMAGENET1K_V1")


def test_weights_that_torchvision_has_not_got(published: Path) -> None:
    name = "torchvision:mobilenet_v3_small"
    network = open_network(name, "IMAGENET1K_V1", 3, device="cpu")
    assert network.classes == ("cat", "dog", "owl")
    assert network.eval_recipe == "imagenet-eval:size=224,resize=256"
    with pytest.raises(ModelError, match="IMAGENET1K_V1 know 3 classes; the data has 10"):
        open_network(name, "IMAGENET1K_V1", 10, device="cpu")
    with pytest.raises(ModelError, match="weights IMAGENET1K_V9 do not exist"):
        open_network(name, "IMAGENET1K_V9", 3, device="cpu")
    with pytest.raises(ModelError, match="have no card, and torchvision:mobilenet_v3_small does not say"):
        open_network(name, published, 3, device="cpu")  # a file may be anybody's
    published.write_bytes(published.read_bytes() + b"x")
    with pytest.raises(ModelError, match="are no longer torchvision's"):
        open_network(name, "DEFAULT", 3, device="cpu")
    published.unlink()
    with pytest.raises(ModelError) as caught:
        open_network(name, "DEFAULT", 3, device="cpu")
    assert "weights DEFAULT of torchvision:mobilenet_v3_small cannot be fetched (" in str(caught.value)
    assert f"put {published.name} of torchvision's model zoo into {published.parent}" in str(caught.value)


def test_weights_that_timm_has_not_got(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    import huggingface_hub

    def refused(*args: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refused)
    with pytest.raises(ModelError) as caught:
        open_network("timm:test_vit", "pretrained", 1000, device="cpu")
    assert str(caught.value) == (
        "weights pretrained of timm:test_vit cannot be fetched (no network): get model.safetensors of "
        "timm/test_vit.r160_in1k elsewhere, and name it with --weights FILE"
    )
    for name in ("resnet", "hf-hub:a/b", "local-dir:a", "test_vit.none", "a/b"):
        with pytest.raises(UsageError, match="timm has no"):
            open_network(f"timm:{name}", "pretrained", 1000, device="cpu")


def _hf(path: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(image_size=32, patch_size=8, id2label={0: "cat", 1: "dog", 2: "owl"}, **shape)
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(path)
    return model


def test_a_folder_of_transformers(folder: Path) -> None:
    model = _hf(folder / "vit")
    network = open_network("hf:vit", None, 3, device="cpu")
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = model((pixels / 255 - 0.5) / 0.5).logits
    assert torch.allclose(network.logits(pixels), expected, atol=1e-5)
    assert (network.mean, network.size, network.interpolation) == ((0.5,) * 3, (32, 32), "bilinear")
    assert network.classes == ("cat", "dog", "owl")
    assert network.description.name == "hf:vit"
    assert network.description.weights == (
        f"sha256:{hashlib.sha256((folder / 'vit/model.safetensors').read_bytes()).hexdigest()}"
    )
    with pytest.raises(ModelError, match="hf:vit know 3 classes; the data has 10"):
        open_network("hf:vit", None, 10, device="cpu")
    data = ("--data", "imagefolder:data", "--recipe", "imagenet:size=32")
    _run(
        "build",
        "--accept-teacher",
        *data,
        "--teacher",
        f"hf:{folder}/vit",
        "--views",
        1,
        *_CPU,
        "--out",
        "a.zarr",
        "--for",
        "kd",
    )
    assert open_cache("a.zarr").manifest.identity.teacher.stated_by == "vit/preprocessor_config.json"
    assert str(folder) not in Path("a.zarr/manifest.json").read_text()
    _run("train", *data, "--student", "hf:vit", "--epochs", 1, *_CPU, "--threads", 1, "--out", "student")
    evaluate = ("eval", "--data", "imagefolder:data", "--weights", "student/best.safetensors", *_CPU)
    assert "a place that no file may name: name it yourself, with --model hf:PLACE" in _run(*evaluate, code=1).stderr
    _run(*evaluate, "--model", "hf:vit")


def test_a_folder_of_transformers_that_lies(folder: Path) -> None:
    _hf(folder / "vit")
    config = json.loads(Path("vit/config.json").read_text())
    Path("vit/evil.py").write_text("from pathlib import Path\nPath('canary').touch()\n")
    for change, said in (
        ({"auto_map": {"AutoConfig": "evil.C", "AutoModelForImageClassification": "evil.C"}}, None),
        ({"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}}, "is of no network that transformers knows"),
        ({"model_type": "llama"}, "is of no "),
        ({"hidden_size": 10**9}, "config.json has the number 1000000000; none may be above 131072"),
        ({"hidden_size": 2**14, "intermediate_size": 2**16}, "bytes of weights; its config.json is of a network of"),
        ({"num_hidden_layers": 2**17}, "is of no image classifier: it has more than 180 parameters"),
        ({"num_hidden_layers": 3}, "do not fit its config.json: missing_keys"),
        ({"num_hidden_layers": 1}, "do not fit its config.json: unexpected_keys"),
    ):
        Path("vit/config.json").write_text(json.dumps(config | change))
        if said is None:
            open_network("hf:vit", None, 3, device="cpu")
        else:
            with pytest.raises(ModelError) as caught:
                open_network("hf:vit", None, 3, device="cpu")
            assert said in str(caught.value)
    assert not Path("canary").exists()
    Path("vit/config.json").write_text(json.dumps(config))
    Path("vit/model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"vit has no model\.safetensors"):
        open_network("hf:vit", None, 3, device="cpu")
    with pytest.raises(ModelError, match="nowhere is no folder"):
        open_network("hf:nowhere", None, 3, device="cpu")


_OWN = """
import torch
from torch import nn

class Net(nn.Module):
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(192, 10)
    def forward(self, images):
        logits = self.layer(images.flatten(1))
        if len(images) == 7:
            raise KeyError("seven")
        return {"first": logits * 2, "second": logits}

def net(): return Net()
def some(pretrained=True): return Net()
"""


def test_a_callable_that_brings_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bringing_nets.py").write_text(_OWN)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match="say which are with --output first"):
        open_network("bringing_nets:net", None, 10, device="cpu").tried(10, (8, 8))
    first = open_network("bringing_nets:net", None, 10, output="first", device="cpu")
    second = open_network("bringing_nets:net", None, 10, output="second", device="cpu")
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(first.logits(pixels), second.logits(pixels) * 2)
    assert (first.mean, first.description.output) == ((0.1, 0.2, 0.3), "first")
    other = open_network("bringing_nets:some", None, 10, output="first", device="cpu").description.weights
    assert other == first.description.weights
    assert str(other).startswith("sha256:")
    with pytest.raises(ModelError, match=r"net failed: KeyError: 'seven' \(in bringing_nets, "):
        first.logits(pixels[:1].expand(7, 3, 8, 8))
    with pytest.raises(UsageError, match="model cnn-s has no weights of its own: name a file of them with --weights"):
        open_network("cnn-s", None, 10, device="cpu")


_LOGITS, _FEATURES = torch.zeros(2, 10), torch.zeros(2, 64)


class _Object:
    def __init__(self) -> None:
        self.logits, self.loss = _LOGITS, None


@pytest.mark.parametrize(
    ("outputs", "output"),
    [
        (_LOGITS, None),
        ((_LOGITS, _FEATURES), None),
        ([_FEATURES, _LOGITS], None),
        ((_LOGITS, {"feats": [_FEATURES]}), None),
        ((_LOGITS, torch.ones(2, 10)), "0"),
        ({"logits": _LOGITS, "aux": torch.ones(2, 10)}, None),
        ({"x": _LOGITS, "y": torch.ones(2, 10)}, "x"),
        ({"x": _LOGITS, "y": _FEATURES}, None),
        (_Object(), None),
        (torchvision.models.GoogLeNetOutputs(_LOGITS, torch.ones(2, 10), None), None),
    ],
)  # fmt: skip
def test_the_logits_among_outputs(outputs: Any, output: str | None) -> None:
    assert pick_logits(outputs, "model x", 10, output) is _LOGITS


@pytest.mark.parametrize(
    ("outputs", "output", "said"),
    [
        ((_LOGITS, _LOGITS), None, "gives a tuple of '0' [2, 10], '1' [2, 10]; several of them could be logits"),
        ((_FEATURES, 3), None, "gives a tuple of '0' [2, 64], '1' (int); none of them could be logits of 10 classes"),
        ((_LOGITS, _LOGITS), "2", "gives no output '2', as --output says, but a tuple of '0' [2, 10], '1' [2, 10]"),
        (_LOGITS, "logits", "gives no output logits, as --output says, but one Tensor"),
        ({"a": _LOGITS, "b": _LOGITS}, None, "gives a dict of a [2, 10], b [2, 10]; several of them could be logits"),
    ],
)
def test_outputs_that_are_not_guessed(outputs: Any, output: str | None, said: str) -> None:
    with pytest.raises(ModelError) as caught:
        pick_logits(outputs, "model x", 10, output)
    assert said in str(caught.value)


def test_another_size_is_said(network: Network, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        network.tried(10, (8, 8))
        assert not caplog.records
        network.tried(10, (16, 16))
    assert "was made for images of 8x8, as its card says, and sees 16x16 here" in caplog.text


@pytest.fixture
def network(weights: Path) -> Network:
    return open_network("cnn-s", weights, 10, device="cpu")


def test_who_says_what(weights: Path) -> None:
    network = open_network("cnn-s", weights, 10, device="cpu")
    assert network.origins["normalization"] == network.origins["size"] == "its card"
    assert str(network).startswith("cnn-s: mean ")
    assert "made for 8x8 (its card)" in str(network)


def test_a_student_begins_from_weights(folder: Path, weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A head of other classes stays fresh, and the weights' normalisation goes on."""
    card = load_card(weights)
    assert card is not None
    train = ("train", "--data", "imagefolder:data", "--recipe", "imagenet:size=32", "--epochs", 1, *_CPU)
    out = ("--batch-size", 32, "--lr", 1e-9, "--threads", 1, "--out")
    with caplog.at_level(logging.INFO):
        _run(*train, "--student", "cnn-s", "--init", weights, *out, "a")
        _run(*train, "--student", "cnn-s", "--init", "a/last.safetensors", *out, "b")
    assert "know other classes: '13.bias', '13.weight' stay fresh" in caplog.text
    made = open_network(None, "a/last.safetensors", 3, device="cpu")
    assert (made.mean, made.std) == (card.mean, card.std)
    first = open_network("cnn-s", weights, 10, device="cpu").model.state_dict()["0.weight"]
    assert torch.allclose(made.model.state_dict()["0.weight"], first, atol=1e-4)
    assert "the network begins from all of a/last.safetensors" in caplog.text
    refused = _run(*train, "--student", "cnn-l", "--init", weights, *out, "c", code=1)
    assert "do not fit cnn-l" in refused.stderr
    assert not Path("c").exists()


def test_a_student_of_timm_begins_from_weights(folder: Path) -> None:
    pytest.importorskip("timm")
    torch.save(build_model("timm:test_vit", 7).state_dict(), "vit.pth")
    train = ("train", "--data", "imagefolder:data", "--recipe", "imagenet:size=160", "--epochs", 1, *_CPU)
    _run(*train, "--student", "timm:test_vit", "--init", "vit.pth", "--batch-size", 32, "--threads", 1, "--out", "a")
    card = load_card(Path("a/best.safetensors"))
    assert card is not None
    assert (card.mean, card.eval_recipe) == ((0.5, 0.5, 0.5), "imagenet-eval:size=160")
    bare = open_network("timm:test_vit", "vit.pth", 7, device="cpu")
    assert (bare.eval_recipe, bare.size) == ("imagenet-eval:size=160,resize=168", (160, 160))
