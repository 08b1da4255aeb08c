"""Exports: each file opens as its users open it, gives the network's logits, and is whole or not there."""

import json
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from click.testing import CliRunner, Result
from gdkd_cache_cli.main import main
from safetensors.torch import load_file, save_file
from torch import Tensor

from gdkd_cache.data.source import ArraySource
from gdkd_cache.models.build import build_model
from gdkd_cache.models.card import ModelCard
from gdkd_cache.models.opening import open_network
from gdkd_cache.models.weights import load_card, save_weights

_OWN = """
import torch
from gdkd_cache.models.export.base import ExportFormat

class Plain(ExportFormat):
    suffix = ".txt"
    is_program = False
    def encode(self, exported):
        self.model = exported.network.model
        return b"a file"
    def run(self, data, exported, images):
        return self.model(images) + self.off
    def hint(self, out):
        return f"cat {out}"
    off = 0

class Wrong(Plain):
    off = 0.5

class Missing(Plain):
    libraries = ("json", "no_such_library")

class Small(Plain):
    most_bytes = 100

class Fixed(torch.nn.Module):
    mean = std = (0.5, 0.5, 0.5)
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(192, 10)
    def forward(self, images):
        if len(images) != 2:
            images = images * 1.5
        return self.layer(images.flatten(1))

class Two(Fixed):
    def forward(self, images):
        return {"features": images.flatten(1)[:, :10], "other": self.layer(images.flatten(1))}
"""


def _run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "export_own.py").write_text(_OWN)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("export_own", None)


@pytest.fixture(scope="module")
def normalised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a network with batch normalisation that has seen some batches."""
    path = tmp_path_factory.mktemp("resnet") / "best.safetensors"
    torch.manual_seed(0)
    model = build_model("resnet8", 10)
    model(torch.randn(64, 3, 8, 8))
    card = ModelCard(name="resnet8", num_classes=10, size=(8, 8), mean=(0.3,) * 3, std=(0.4,) * 3, accuracy=0.25)
    save_weights(model, card, path)
    return path


def _opened(path: Path, images: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """The logits that a program gives, and what its file says."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(str(path))
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        return torch.from_numpy(logits), json.loads(session.get_modelmeta().custom_metadata_map["gdkd_cache"])
    files = {"gdkd_cache": ""}
    program = torch.export.load(path, extra_files=files)
    return program.module()(images), json.loads(files["gdkd_cache"])


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("takes", ["normalized", "pixels"])
def test_a_program_gives_the_networks_logits(
    tmp_path: Path, normalised: Path, digits: ArraySource, suffix: str, takes: str
) -> None:
    """For any number of images; and it says what it takes, and what its outputs are called."""
    out = tmp_path / f"student{suffix}"
    result = _run("export", "--weights", normalised, "--out", out, "--input", takes, "--data", "digits")
    assert result.exit_code == 0, result.output
    first, hint = result.stdout.splitlines()
    assert first.startswith(f"{out}: resnet8 as {'onnx' if suffix == '.onnx' else 'torch-export'}, ")
    assert float(first.rpartition(" ")[2]) < 1e-4
    assert hint.startswith("open with: ")
    network = open_network(None, normalised, 10, device="cpu", precision="float32")
    for number in (1, 2, 5):
        pixels = torch.from_numpy(digits.images[:number])
        images = pixels / 255 if takes == "pixels" else (pixels / 255 - 0.3) / 0.4
        logits, said = _opened(out, images)
        torch.testing.assert_close(logits, network.logits(pixels), rtol=1e-4, atol=1e-4)
    card = {"name": "resnet8", "num_classes": 10, "size": [8, 8], "mean": [0.3] * 3, "std": [0.4] * 3, "accuracy": 0.25}
    assert said == {"card": card, "input": takes, "classes": [str(digit) for digit in range(10)]}


def test_foreign_weights_become_ours(tmp_path: Path, weights: Path) -> None:
    """What had to be typed stands in the card from then on."""
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in load_file(weights).items()}}, tmp_path / "a.pt"
    )
    foreign = ("--model", "cnn-s", "--weights", tmp_path / "a.pt", "--normalize", "half")
    out = tmp_path / "a.safetensors"
    for given, said in (
        (foreign, "nobody says how many classes cnn-s knows: type --num-classes N"),
        ((*foreign, "--num-classes", "10"), "nobody says which size of images cnn-s takes: type --size N"),
    ):
        assert said in _run("export", *given, "--out", out).stderr
    result = _run("export", *foreign, "--num-classes", "10", "--size", "8", "--out", out)
    assert result.exit_code == 0, result.output
    assert load_card(out) == ModelCard(name="cnn-s", num_classes=10, size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
    assert all(torch.equal(value, load_file(weights)[name]) for name, value in load_file(out).items())
    evaluated = [
        _run("eval", "--data", "digits", "--device", "cpu", *given).stdout for given in (("--weights", out), foreign)
    ]
    assert evaluated[0] == evaluated[1] != ""


def test_what_a_library_says(tmp_path: Path) -> None:
    """A network of torchvision's, with weights of one's own."""
    torch.manual_seed(0)
    save_file(build_model("torchvision:squeezenet1_1", 7).state_dict(), tmp_path / "a.safetensors")
    command = ["export", "--model", "torchvision:squeezenet1_1", "--weights", tmp_path / "a.safetensors"]
    command += ["--normalize", "imagenet", "--num-classes", "7", "--size", "64", "--out", tmp_path / "a.pt2"]
    result = _run(*command)
    assert result.exit_code == 0, result.output
    logits, said = _opened(tmp_path / "a.pt2", torch.randn(3, 3, 64, 64))
    assert logits.shape == (3, 7)
    assert (said["card"]["name"], said["classes"]) == ("torchvision:squeezenet1_1", [])


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_classes_are_mapped_in_the_program(tmp_path: Path, weights: Path, digits: ArraySource, suffix: str) -> None:
    """Outputs in another order come in the data's; two that are one class are joined, and one is dropped."""
    model = build_model("cnn-s", 12)
    torch.manual_seed(2)
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    names = ["9", "8", "7", "6", "5", "4", "3", "2", "1", "0", "3", "none"]
    (tmp_path / "classes.txt").write_text("\n".join(names))
    command = ["export", "--model", "cnn-s", "--weights", tmp_path / "a.safetensors", "--normalize", "half"]
    command += ["--classes", tmp_path / "classes.txt", "--size", "8"]
    assert "--classes goes with --data" in _run(*command, "--out", tmp_path / f"b{suffix}").stderr
    command += ["--data", "digits"]
    refused = _run(*command, "--out", tmp_path / "b.safetensors")
    assert "--classes is for programs; format safetensors holds weights and their card alone" in refused.stderr
    result = _run(*command, "--out", tmp_path / f"b{suffix}")
    assert result.exit_code == 0, result.output
    images = torch.randn(3, 3, 8, 8)
    logits, said = _opened(tmp_path / f"b{suffix}", images)
    with torch.no_grad():
        own = model.eval()(images)
    expected = own[:, :10].flip(1)
    expected[:, 3] = own[:, [6, 10]].logsumexp(1)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert said["card"]["num_classes"] == len(said["classes"]) == 10


def test_whole_or_not_at_all(tmp_path: Path, weights: Path, own: None) -> None:
    """What is there stays unless --force says otherwise, and also then until the new file is known to be right."""
    out = tmp_path / "a.txt"
    command = ("export", "--weights", weights, "--out", out)
    result = _run(*command, "--format", "export_own:Plain")
    assert result.stdout.splitlines()[1] == f"open with: cat {out}"
    assert out.read_text() == "a file"
    out.write_text("mine")
    assert "a.txt exists; name another --out, or add --force" in _run(*command, "--format", "export_own:Plain").stderr
    for name, said in (
        ("Wrong", "cnn-s gives other logits from the file, by up to 0.5, than by itself: it cannot be exported so"),
        ("Missing", "format export_own:Missing needs json, no_such_library, which are not all installed"),
        ("Small", "bytes of weights; format export_own:Small holds 100"),
    ):
        result = _run(*command, "--force", "--format", f"export_own:{name}")
        assert (result.exit_code > 0, said in result.stderr) == (True, True), result.output
        assert out.read_text() == "mine"
    assert _run(*command, "--force", "--format", "export_own:Plain").exit_code == 0
    assert out.read_text() == "a file"
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (("--out", "a.bin"), 2, "its name must end in .safetensors (safetensors), .pt2 (torch-export), .onnx (onnx)"),
        (("--out", "a.pt2", "--format", "onnx"), 2, "out is 'a.pt2'; the name of a onnx file ends in .onnx"),
        (
            ("--out", "a.pt2", "--format", "tflite"),
            2,
            "format is 'tflite'; it must be one of safetensors, torch-export",
        ),
        (("--out", "no/a.pt2"), 1, "no is no folder; make it, or name another --out"),
        (("--out", "a.safetensors", "--input", "pixels"), 2, "--input pixels is for programs"),
        (("--out", "a.pt2", "--input", "bytes"), 2, "input is 'bytes'; it must be one of normalized, pixels"),
        (("--out", "a.pt2", "--data", "digits", "--num-classes", "10"), 2, "leave --num-classes out"),
        (("--out", "a.pt2", "--num-classes", "12"), 1, "know 10 classes; the data has 12"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Path, given: tuple[str, ...], code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = _run("export", "--weights", weights, *given)
    assert (result.exit_code, said in result.stderr) == (code, True), result.output
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    result = _run("export", "--weights", tmp_path / "a.pt", "--out", tmp_path / "b.pt2")
    assert (result.exit_code, "a.pt do not exist" in result.stderr) == (1, True)
    assert (
        "name the weights, with --weights" in _run("export", "--num-classes", "3", "--out", tmp_path / "b.pt2").stderr
    )


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_program_for_two_images_alone_is_refused(tmp_path: Path, own: None, suffix: str) -> None:
    """A network that does something else for other numbers of images cannot be traced."""
    result = _run(
        "export", "--model", "export_own:Fixed", "--num-classes", "10", "--size", "8", "--out", tmp_path / f"a{suffix}"
    )
    assert result.exit_code == 1, result.output
    assert "export_own:Fixed" in result.stderr
    assert len(result.stderr.splitlines()[-1]) < 400
    assert not (tmp_path / f"a{suffix}").exists()


def test_one_of_several_outputs(tmp_path: Path, own: None) -> None:
    command = ["export", "--model", "export_own:Two", "--num-classes", "10", "--size", "8", "--output", "other"]
    refused = _run(*command, "--out", tmp_path / "a.safetensors")
    assert "--output is for programs" in refused.stderr
    result = _run(*command, "--out", tmp_path / "a.pt2")
    assert result.exit_code == 0, result.output
    assert _opened(tmp_path / "a.pt2", torch.randn(4, 3, 8, 8))[0].shape == (4, 10)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx", ".safetensors"])
def test_a_network_for_masks_gives_its_main_output(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"a{suffix}"
    given = ["--model", "seg-s", "--num-classes", "4", "--size", "32", "--normalize", "imagenet", "--out", out]
    trained = tmp_path / "w.safetensors"
    torch.manual_seed(0)
    model = build_model("seg-s", 4)
    save_weights(model, ModelCard(name="seg-s", num_classes=4, size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3), trained)
    result = _run("export", *given, "--weights", trained)
    assert result.exit_code == 0, result.output
    if suffix != ".safetensors":
        images = torch.randn(2, 3, 32, 32)
        own = model.eval()(images)["main"].detach()
        torch.testing.assert_close(torch.as_tensor(_opened(out, images)[0]), own, atol=1e-4, rtol=1e-4)
