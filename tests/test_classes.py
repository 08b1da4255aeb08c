"""A teacher's outputs are mapped to the classes of the data by id, WordNet id or name, and stay so."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import build_small, forge

from gdkd_cache import open_cache
from gdkd_cache.building.repair import repair
from gdkd_cache.checking.verify import verify
from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import CacheError, ModelError, UsageError
from gdkd_cache.models.build import build_model
from gdkd_cache.models.card import ModelCard
from gdkd_cache.models.classes import ClassLogits, check_order, output_classes
from gdkd_cache.models.network import Network
from gdkd_cache.models.opening import open_network, open_teacher
from gdkd_cache.models.weights import save_weights

_NAMES = (["tench, Tinca tinca", "great white shark, white shark", "crane"], ["n01440764", "n01484850", "n02012849"])
_ORDERED = "n01484850 great white shark\nn99999999 unknown\nn02012849 crane\nn01440764 tench, Tinca tinca\n"


def _found(spec: str | Path, names: tuple[list[str], ...] = _NAMES, published: list[str] | None = None) -> list[int]:
    return output_classes(str(spec), names, lambda: published)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2\n0\n1\n", [2, 0, 1]),
        ("n02012849\nn01440764\nn01484850", [2, 0, 1]),
        ("crane\nTench\nGreat_White_Shark, white  shark\n\n", [2, 0, 1]),
        ("\ufeffcrane\r\ntench\r\nother\r\nwhite shark\r\ngreat white shark", [2, 0, -1, -1, 1]),
        (_ORDERED, [1, -1, 2, 0]),
        ("0\n1\n-\n2\n1\n", [0, 1, -1, 2, 1]),
        (json.dumps({"0": ["n01484850", "x"], "1": ["n01440764", "crane"], "2": ["n02012849", "tench"]}), [1, 0, 2]),
        (json.dumps({"1": "tench", "0": "crane", "2": "great white shark"}), [2, 0, 1]),
        (json.dumps({"tench": 1, "crane": 2, "great white shark": 0}), [1, 0, 2]),
        (json.dumps([["n01440764"], "crane", "n01484850"]), [0, 2, 1]),
    ],
)  # fmt: skip
def test_the_lists_that_people_have(tmp_path: Path, text: str, expected: list[int]) -> None:
    """A WordNet id goes before the name beside it, and a name before a number."""
    (tmp_path / "list").write_text(text)
    assert _found(tmp_path / "list") == expected


def test_names_that_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("1\n2\n0\n")
    assert _found(tmp_path / "list", (["2", "0", "1"],)) == [2, 0, 1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tench\ncrane\nx", "1 of the data's 3 classes are none of the 3 outputs that it names: 'great white shark"),
        ("a\nb", "the first output is a"),
        ("", "names 0 outputs"),
        ("{", "no list of classes"),
        ('{"0": "crane", "2": "tench"}', "no list of classes"),
        ("[1, 2, 3]", "no list of classes"),
        ("[" * 10**5, "no list of classes"),
        ("[[], []]", "no list of classes"),
        (b"\xff\xfe", "no text in UTF-8"),
        (b"x\n" * 2**23, "larger than"),
        (None, "does not exist"),
    ],
)
def test_what_is_no_list(tmp_path: Path, text: str | bytes | None, said: str) -> None:
    if text is not None:
        (tmp_path / "list").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ModelError, match=said) as caught:
        _found(tmp_path / "list")
    assert "\n" not in str(caught.value)


def test_a_name_of_several_classes(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("crane\ncrane\ntench")
    with pytest.raises(ModelError, match="output 0 is crane, as 2 classes of the data are called"):
        _found(tmp_path / "list", (["crane", "crane", "tench"],))


def test_what_a_library_publishes() -> None:
    assert _found("published", published=["crane", "other", "tench", "great white shark"]) == [2, -1, 0, 1]
    with pytest.raises(UsageError, match="nobody publishes"):
        _found("published")
    with pytest.raises(ModelError, match="outputs 0 and 1 are both called as class crane"):
        _found("published", published=["crane", "crane", "tench", "great white shark"])


def test_a_list_by_name() -> None:
    pytest.importorskip("timm")
    found = _found("imagenet-1k")
    assert len(found) == 1000
    assert [found.index(number) for number in range(3)] == [0, 2, 134]


def test_orders_are_compared() -> None:
    check_order("x", ["tench", "white shark", "crane"], _NAMES)
    check_order("x", ["a", "b", "c"], _NAMES)
    with pytest.raises(ModelError, match=r"output 0 of x is crane, and class 0 .* --classes published"):
        check_order("x", ["crane", "white shark", "tench"], _NAMES)


def test_logits_of_classes() -> None:
    """As the sums of a softmax over the outputs, renormalised over those that are classes."""
    classes = [2, 0, -1, 0, 1, 2, 0]
    outputs = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) * 3
    model = ClassLogits(torch.nn.Identity(), classes)
    shares = outputs.double().softmax(-1)
    sums = torch.stack([shares[:, [i for i, own in enumerate(classes) if own == one]].sum(-1) for one in range(3)], -1)
    torch.testing.assert_close(model(outputs).double().softmax(-1), sums / sums.sum(-1, keepdim=True))
    torch.testing.assert_close(model.dropped(outputs).double(), shares[:, 2], atol=1e-6, rtol=0)
    assert torch.equal(ClassLogits(torch.nn.Identity(), [1, -1, 0])(outputs[:, :3]), outputs[:, [2, 0]])
    with pytest.raises(ModelError, match="has 6 outputs; --classes says of 7"):
        model(outputs[:, :6])


@pytest.fixture
def permuted(tmp_path: Path, teacher: Network) -> Path:
    """The teacher's weights with 12 outputs: its ten in another order, and two of no class; `order` beside them."""
    order = [3, 1, 4, -1, 0, 9, 2, 6, 5, 8, -1, 7]
    model = open_network("cnn-s", _fresh(tmp_path), 12, device="cpu").model
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name, value in teacher.model.state_dict().items():
        if value.shape == state[name].shape:
            state[name] = value
        else:
            for output, number in enumerate(order):
                state[name][output] = value[number] if number >= 0 else 0
    model.load_state_dict(state)
    (tmp_path / "order").write_text("\n".join(map(str, order)))
    return _saved(model, tmp_path / "permuted.safetensors")


def _saved(model: torch.nn.Module, path: Path) -> Path:
    card = ModelCard(name="cnn-s", num_classes=12, size=(8, 8), mean=(0.3, 0.3, 0.3), std=(0.4, 0.4, 0.4))
    save_weights(model, card, path)
    return path


def _fresh(folder: Path) -> Path:
    return _saved(build_model("cnn-s", 12), folder / "fresh.safetensors")


def test_a_cache_of_mapped_outputs(tmp_path: Path, permuted: Path, digits: ArraySource, teacher: Network) -> None:
    """Its logits are those of the teacher whose outputs are the classes; the manifest says how to run it again."""
    classes = _found(tmp_path / "order", (list(digits.classes),))
    mapped = open_network("cnn-s", permuted, 10, classes=classes, device="cpu")
    pixels = torch.from_numpy(digits.images[:50])
    torch.testing.assert_close(mapped.logits(pixels), teacher.logits(pixels))
    out = tmp_path / "c.zarr"
    build_small(out, digits, mapped, codec="dense")
    stated = open_cache(out).manifest.identity.teacher
    assert stated.classes == (3, 1, 4, -1, 0, 9, 2, 6, 5, 8, -1, 7)
    again = open_teacher(stated, "cnn-s", permuted, 10, device="cpu")
    assert verify(out, source=digits, teacher=again, num_rows=64).problems == ()
    damaged = out / next(name for name in open_cache(out).manifest.objects if name.startswith("logits/c/1/"))
    whole = damaged.read_bytes()
    damaged.write_bytes(b"x")
    assert repair(out, source=digits, teacher=again).problems == ()
    assert damaged.read_bytes() == whole
    plain = replace(again, description=replace(again.description, classes=None))
    (problem,) = verify(out, source=digits, teacher=plain, num_rows=64).problems
    assert "other classes here than in the manifest" in problem


def test_classes_that_are_in_order(permuted: Path, weights: Path, teacher: Network) -> None:
    same = open_network("cnn-s", weights, 10, classes=list(range(10)), device="cpu")
    assert same.description == teacher.description
    for classes in (None, [0, 1, 2]):
        with pytest.raises(ModelError, match="know 12 classes; "):
            open_network("cnn-s", permuted, 10, classes=classes, device="cpu")


@pytest.mark.parametrize("classes", [[0, 10], [-2], [2**40]])
def test_a_manifest_with_other_classes(tmp_path: Path, digits_cache: Path, classes: list[int]) -> None:
    (tmp_path / "manifest.json").write_bytes((digits_cache / "manifest.json").read_bytes())
    forge(tmp_path, lambda stored: stored["identity"]["teacher"].update(classes=classes))
    with pytest.raises(CacheError, match="not all of them -1 to 9"):
        open_cache(tmp_path)
