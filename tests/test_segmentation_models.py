"""Dense networks: what they give, how they are tried, and the published ones' tensors."""

import pytest
import torch
from torch import Tensor, nn

from gdkd_cache.errors import ModelError
from gdkd_cache.models.build import build_model
from gdkd_cache.models.cells import cell_logits
from gdkd_cache.models.classes import ClassLogits
from gdkd_cache.models.network import Network
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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"x gives the outputs \(none\); the first must be main"),
        ({"out": _numbered(2, 5, 3, 4)}, "x gives the outputs out; the first must be main"),
        (
            {"main": _numbered(2, 5)},
            r"torch.float32 \[2, 5\] as main; .* float logits \[batch, class, height, width\]$",
        ),
        (_numbered(2, 5, 3), r"\[2, 5, 3\]; it must give float logits .*, or \[batch, class\]$"),
        (_numbered(2, 5, 3, 4).long(), r"torch.int64 \[2, 5, 3, 4\]; it must"),
        ("text", "x gives str; it must"),
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
