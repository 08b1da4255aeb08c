"""Dense networks: what they give, how they are tried, and the published ones' tensors."""

import hashlib
from pathlib import Path

import pytest
import torch
import torchvision
from filled import filled
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation import LRASPP_MobileNet_V3_Large_Weights

from gdkd_cache.errors import ModelError, UsageError
from gdkd_cache.models.build import build_model, outline_model
from gdkd_cache.models.cells import cell_logits, named_outputs, upsampled
from gdkd_cache.models.classes import ClassLogits
from gdkd_cache.models.network import Network
from gdkd_cache.models.opening import open_network
from gdkd_cache.models.outputs import give_logits
from gdkd_cache.models.trial import try_student
from gdkd_cache.store.facts import TeacherFacts

_CPU = torch.device("cpu")


class _Gives(nn.Module):
    """A network that gives the same for anything."""

    def __init__(self, given: object) -> None:
        super().__init__()
        self.given = given

    def forward(self, images: Tensor) -> object:
        return self.given


def _numbered(*shape: int) -> Tensor:
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape)


def test_one_output_has_no_name_and_several_have_an_axis() -> None:
    maps = _numbered(2, 5, 3, 4)
    names, logits = cell_logits(maps.half(), "x")
    assert (names, logits.shape, logits.dtype) == ((), (2, 3, 4, 5), torch.float32)
    assert torch.equal(logits[1, 2, 3], maps[1, :, 2, 3])
    assert torch.equal(cell_logits({"main": maps}, "x")[1], cell_logits(maps, "x")[1])
    names, both = cell_logits({"main": maps, "aux": -maps}, "x")
    assert names == ("main", "aux")
    assert torch.equal(both, torch.stack([logits, -logits], 1))
    assert cell_logits(maps[:, :, :1, :1], "x")[1].shape == cell_logits(maps[:, :, 0, 0], "x")[1].shape == (2, 5)

    assert named_outputs(maps)["main"] is maps


def test_upsampling_keeps_the_corners() -> None:
    maps = _numbered(1, 2, 3, 4)
    larger = upsampled(maps, (5, 7))  # corners stay, and so does every second value
    assert torch.allclose(larger[:, :, ::2, ::2], maps)
    assert torch.allclose(larger[:, :, 0, 1], (maps[:, :, 0, 0] + maps[:, :, 0, 1]) / 2)
    assert upsampled(maps, (3, 4)) is maps


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"x gives the outputs \(none\); the first must be main"),
        ({"out": _numbered(2, 5, 3, 4)}, "x gives the outputs out; the first must be main"),
        (
            {"main": _numbered(2, 5)},
            r"torch.float32 \[2, 5\] as main; .* float logits \[batch, class, height, width\]$",
        ),
        (_numbered(2, 5, 3), r"\[2, 5, 3\] as main; it must give float logits \[batch, class, height, width\]$"),
        (_numbered(2, 5, 3, 4).long(), r"torch.int64 \[2, 5, 3, 4\] as main; it must"),
        ("text", "x gives str as main; it must"),
        (
            {"main": _numbered(2, 5, 3, 4), "aux": _numbered(2, 5, 6, 8)},
            r"\[2, 5, 6, 8\] as aux and \[2, 5, 3, 4\] as main; all outputs must",
        ),
        ({"main": _numbered(2, 5, 3, 4), "aux": _numbered(2, 6, 3, 4)}, "must have one grid and the same classes"),
    ],
)
def test_what_is_no_grid_of_logits_is_refused_in_a_line(given: object, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        cell_logits(given, "x")
    assert "\n" not in str(caught.value)


def test_a_dense_network_keeps_its_outputs_unless_one_is_named() -> None:
    images = torch.zeros(2, 3, 20, 33)
    assert [*build_model("seg-s", 5)(images)] == ["main", "aux"]
    assert build_model("seg-s", 5, "aux")(images).shape == (2, 5, 3, 5)
    undeclared = _Gives({"a": _numbered(2, 5, 3, 4), "b": _numbered(2, 5, 3, 4)})
    give_logits(undeclared, "x", 5)
    with pytest.raises(ModelError, match="none of them could be logits of 5 classes"):
        undeclared(images)


def test_the_trial_says_what_grid_comes_out() -> None:
    model = build_model("seg-s", 5)
    assert try_student("seg-s", model, 5, (20, 33), num_images=2, device=_CPU, dense=True) == "contiguous"
    network = Network(
        model=model.eval(),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        device=_CPU,
        precision="float32",
        description=TeacherFacts(name="seg-s"),
    ).tried(5, (20, 33), dense=True)
    assert (network.outputs, network.grid) == (("main", "aux"), (2, 3, 5))
    assert network.logits(torch.zeros(2, 3, 20, 33, dtype=torch.uint8)).shape == (2, 2, 3, 5, 5)


@pytest.mark.parametrize(
    ("name", "num_classes", "dense", "message"),
    [
        ("seg-s", 5, False, "model seg-s is dense, with outputs main, aux; this data has no masks"),
        ("cnn-s", 5, True, "model cnn-s gives one distribution an image; masks need a dense network, such as seg-s"),
        ("seg-s", 6, True, r"gives logits \[2, 2, 2, 2, 5\] for 2 images, expected \[2, 2, 2, 2, 6\]: the data has 6"),
    ],
)
def test_a_network_of_the_other_kind_is_refused(name: str, num_classes: int, dense: bool, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        try_student(name, build_model(name, 5), num_classes, (16, 16), num_images=2, device=_CPU, dense=dense)


def test_classes_are_joined_in_every_cell() -> None:
    maps = _numbered(2, 4, 2, 3) / 7
    joined = ClassLogits(_Gives({"main": maps, "aux": -maps}), [1, 0, 1, -1])(torch.zeros(2, 3, 8, 8))
    assert torch.equal(joined["main"][:, 0], maps[:, 1])
    assert torch.equal(joined["aux"][:, 1], (-maps[:, [0, 2]]).logsumexp(1))


# Of all names and shapes at 19 classes, and the number of parameters: recorded from the public definitions (the first
# version of CIRKD's networks, as seg-gdkd has them, and its second).
_PUBLIC = {
    "deeplabv3-resnet18": (190, 13607974, "5786f86e1d2b931c"),
    "deeplabv3-resnet101": (688, 61118950, "dee7b0c489a7a017"),
    "pspnet-resnet18": (178, 12919334, "c070f65cfd894eb0"),
    "pspnet-resnet101": (676, 68072166, "5549e72b1cc17d99"),
    "deeplabv3-resnet18:512": (190, 22762918, "014f808a6a127226"),
    "deeplabv3-resnet101:512": (688, 79084262, "132b7ad46ed89ad0"),
    "pspnet-resnet101:256": (676, 58629606, "501ba8c8b4d47e77"),
}


@pytest.mark.parametrize("name", _PUBLIC)
def test_tensors_are_those_of_the_public_networks(name: str) -> None:
    outline = outline_model(name, 19)
    lines = sorted(f"{key} {list(value.shape)}" for key, value in outline.state_dict().items())
    number = sum(value.numel() for value in outline.parameters())
    listed = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    assert (len(lines), number, listed) == _PUBLIC[name]


# Of two cells, recorded from the public definitions, whose tensors were filled by `filled`, and which saw blue first.
_AUX = [-0.073703, 0.044571, 0.019427, -0.409233, 0.452666, -0.119745, 0.274697, 0.293898, -0.190962, 0.104023]
_LOGITS = {
    "deeplabv3-resnet18": [
        *(-0.401653, -0.200583, -0.63974, -0.254787, -0.761883),
        *(0.070713, 0.014197, -0.070565, 0.225119, -0.267443),
    ],
    "pspnet-resnet18": [
        *(-0.515549, 0.0376, -0.112979, 0.498505, 0.341834),
        *(-0.571988, -0.104946, 0.153035, 0.630781, 0.20522),
    ],
}


@pytest.mark.parametrize("name", _LOGITS)
def test_a_public_checkpoint_gives_the_public_logits(name: str, tmp_path: Path) -> None:
    tensors = outline_model(name, 5).state_dict()
    tensors = {f"module.{key}": filled(key, tuple(value.shape)) for key, value in tensors.items()}
    torch.save({"state_dict": tensors}, tmp_path / "kd_best_model.pth")
    network = open_network(name, tmp_path / "kd_best_model.pth", 5, device="cpu")
    # What the weights were trained on, as nobody else says it: pixels of 0 to 255 less the mean, red first here.
    assert network.mean == pytest.approx([122.67891434 / 255, 116.66876762 / 255, 104.00698793 / 255])
    assert network.std == (1 / 255,) * 3
    with torch.no_grad():
        outputs = network.model(5 * filled("images", (2, 3, 33, 47)))
    for output, expected in ((outputs["main"], _LOGITS[name]), (outputs["aux"], _AUX)):
        assert output.shape == (2, 5, 5, 6)
        assert torch.allclose(torch.cat([output[0, :, 1, 2], output[1, :, 4, 5]]), torch.tensor(expected), atol=2e-5)


@pytest.mark.parametrize("channels", ["", "0", "x", "-1", "10000", "1e3"])
def test_a_head_has_a_number_of_channels(channels: str) -> None:
    with pytest.raises(UsageError, match="is no number of channels of its head, 1 to 9999"):
        build_model(f"pspnet-resnet18:{channels}", 5)


def test_every_stage_after_the_second_has_stride_8() -> None:
    model = build_model("deeplabv3-resnet18", 3).eval()
    with torch.no_grad():
        one, two = (model(torch.zeros(1, 3, *size)) for size in ((64, 72), (65, 73)))
    assert one["main"].shape == one["aux"].shape == (1, 3, 8, 9)
    assert two["main"].shape == two["aux"].shape == (1, 3, 9, 10)


_OF_TORCHVISION = {
    "deeplabv3_mobilenet_v3_large": (16, ("main", "aux")),
    "deeplabv3_resnet50": (8, ("main", "aux")),
    "lraspp_mobilenet_v3_large": (8, ("main",)),
}


@pytest.mark.parametrize("name", _OF_TORCHVISION)
def test_networks_of_torchvision_give_cells_before_they_are_upsampled(name: str) -> None:
    stride, outputs = _OF_TORCHVISION[name]
    model = build_model(f"torchvision:{name}", 5).eval()
    options = {} if len(outputs) == 1 else {"aux_loss": True}
    options |= {"weights": None, "weights_backbone": None, "num_classes": 5}
    theirs = torchvision.models.get_model(name, **options).eval()
    theirs.load_state_dict(model.state_dict())  # the same names
    images = filled("images", (1, 3, 48, 64))
    with torch.no_grad():
        ours, expected = model(images), theirs(images)["out"]
    assert tuple(ours) == outputs
    assert {tuple(part.shape) for part in ours.values()} == {(1, 5, 48 // stride, 64 // stride)}
    assert torch.equal(F.interpolate(ours["main"], (48, 64), mode="bilinear", align_corners=False), expected)


def test_networks_of_torchvision_have_published_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    kept = tmp_path / "checkpoints"
    kept.mkdir()
    torch.save(build_model("torchvision:lraspp_mobilenet_v3_large", 21).state_dict(), kept / "a.pth")
    name = f"a-{hashlib.sha256((kept / 'a.pth').read_bytes()).hexdigest()[:8]}.pth"
    (kept / "a.pth").rename(kept / name)
    chosen = LRASPP_MobileNet_V3_Large_Weights.DEFAULT.value
    monkeypatch.setattr(chosen, "url", f"https://localhost/{name}")
    network = open_network("torchvision:lraspp_mobilenet_v3_large", "DEFAULT", 21, device="cpu")
    assert network.mean == (0.485, 0.456, 0.406)
    assert network.classes is not None
    assert network.classes[15] == "person"
    assert network.size is None
