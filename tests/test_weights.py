"""Weights and cards: what was saved comes back, in every form; what is damaged, foreign or hostile is one line."""

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import mutated
import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner, Result
from gdkd_cache_cli.main import main
from mutated import CARD

from gdkd_cache.errors import ModelError
from gdkd_cache.models.build import build_model
from gdkd_cache.models.card import ModelCard
from gdkd_cache.models.opening import open_network
from gdkd_cache.models.weights import load_card, load_model, save_weights


def _run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(3)
    return build_model("cnn-s", 10).eval()


def _same(path: Path, model: torch.nn.Module) -> bool:
    loaded, checksum = load_model("cnn-s", 10, path)
    assert checksum == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert not loaded.training
    images = torch.rand(2, 3, 8, 8)
    return torch.equal(loaded(images), model(images))


def test_one_file_holds_weights_and_card(tmp_path: Path, model: torch.nn.Module) -> None:
    path = tmp_path / "best.safetensors"
    save_weights(model, CARD, path)
    first = path.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["best.safetensors"]
    assert load_card(path) == CARD
    assert _same(path, model)
    save_weights(model, CARD, path)
    assert path.read_bytes() == first
    (tmp_path / "best.json").write_text(json.dumps(CARD.to_json() | {"name": "cnn-l"}))  # a stale one is not heard
    assert load_card(path) == CARD


def test_what_version_0_1_0_wrote(tmp_path: Path, model: torch.nn.Module) -> None:
    """A card of its own beside the weights, with null for an accuracy that is not known."""
    path = tmp_path / "best.safetensors"
    path.write_bytes(safetensors.torch.save(model.state_dict()))
    assert load_card(path) is None
    card = {"name": "cnn-s", "num_classes": 10, "size": [8, 8], "mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]}
    path.with_suffix(".json").write_text(json.dumps(card | {"accuracy": None, "eval_recipe": "none"}, indent=1) + "\n")
    assert load_card(path) == ModelCard(
        **{**CARD.to_json(), "size": (8, 8), "accuracy": None, "mean": CARD.mean, "std": CARD.std}
    )
    assert _same(path, model)


class _Options:
    """What checkpoints hold beside tensors, such as argparse's namespace."""


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("form", ["plain", "state_dict", "model", "half", "parameters", "strided", "shared"])
def test_files_of_torch(tmp_path: Path, model: torch.nn.Module, form: str, legacy: bool) -> None:
    """Checkpoints as published ones are, also those that torch itself refuses for what lies beside the tensors."""
    state: dict[str, Any] = dict(model.state_dict())
    if form == "half":
        model = build_model("cnn-s", 10).eval()
        state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
        model.load_state_dict(state)
    elif form == "parameters":
        state |= dict(model.named_parameters())
    elif form == "strided":
        state = {
            name: value.to(memory_format=torch.channels_last) if value.ndim == 4 else value
            for name, value in state.items()
        }
    elif form == "shared":
        names, values = zip(*((name, value) for name, value in state.items() if value.is_floating_point()), strict=True)
        flat = torch.cat([value.flatten() for value in values])
        pieces = flat.split([value.numel() for value in values])
        state |= {name: piece.view(value.shape) for name, piece, value in zip(names, pieces, values, strict=True)}
    elif form == "model":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        state = {"model": state, "epoch": 3, "best": np.float64(0.5), "opt": _Options(), "o": optimizer.state_dict()}
        state |= {} if legacy else {"other": torch.zeros(2, dtype=torch.complex64), "keys": {(1, 2): 3}}
    torch.save(
        {"state_dict": state} if form == "state_dict" else state,
        tmp_path / "a.pth",
        _use_new_zipfile_serialization=not legacy,
    )
    assert _same(tmp_path / "a.pth", model)
    (tmp_path / "a.json").write_text(json.dumps(CARD.to_json()))
    assert load_card(tmp_path / "a.pth") == CARD


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (self.path,))


def test_weights_cannot_execute(tmp_path: Path) -> None:
    canary = _Canary(tmp_path / "canary")
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(canary))
    torch.save({"state_dict": canary}, tmp_path / "evil2.pth")
    torch.save({"state_dict": canary}, tmp_path / "evil3.pth", _use_new_zipfile_serialization=False)
    for name in ("evil.pth", "evil2.pth", "evil3.pth"):
        with pytest.raises(ModelError, match="cannot be read"):
            load_model("cnn-s", 10, tmp_path / name)
    assert not (tmp_path / "canary").exists()


def test_foreign_weights_are_refused(tmp_path: Path, model: torch.nn.Module) -> None:
    path = tmp_path / "best.safetensors"
    with pytest.raises(ModelError, match="do not exist"):
        load_model("cnn-s", 10, path)
    save_weights(model, CARD, path)
    with pytest.raises(ModelError, match=r"do not fit cnn-s with 20 classes: .* is \[10"):
        load_model("cnn-s", 20, path)
    with pytest.raises(ModelError, match="do not fit resnet8"):
        load_model("resnet8", 10, path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot be read"):
        load_model("cnn-s", 10, path)


def _wrong(state: dict[str, torch.Tensor], name: str) -> object:
    first = next(iter(state))
    return {
        "whole numbers": state | {first: state[first].long()},
        "complex numbers": state | {first: state[first].to(torch.complex64)},
        "float8": state | {first: state[first].to(torch.float8_e4m3fn)},
        "quantised": state | {first: torch.quantize_per_tensor(state[first], 0.1, 0, torch.qint8)},
        "sparse": state | {first: state[first].to_sparse()},
        "integer keys": dict(enumerate(state.values())),
        "list": list(state.values()),
        "other values": state | {first: 3},
        "module": build_model("cnn-s", 10),
        "part of larger": state | {first: torch.zeros(10**6)[: state[first].numel()].view(state[first].shape)},
        "expanded": {"0.weight": torch.zeros(1).expand(10**6, 10**6)},
        "nothing": {},
    }[name]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("whole numbers", "'0.weight' has whole numbers, expected floating-point ones"),
        ("complex numbers", "'0.weight' is no plain tensor"),
        ("float8", "'0.weight' is no plain tensor"),
        ("quantised", "'0.weight' is no plain tensor"),
        ("sparse", "is no plain tensor; expected a state dict of plain tensors"),
        ("integer keys", "it holds no state dict of tensors"),
        ("list", "it holds no state dict of tensors"),
        ("other values", "is no plain tensor"),
        ("module", "it holds an object, not a state dict of tensors; save the network's state_dict()"),
        ("part of larger", "its tensors are small parts of larger ones; save clones of them"),
        ("expanded", "'0.weight' is [1000000, 1000000], expected [8, 3, 3, 3]"),
        ("nothing", "it holds no state dict of tensors"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_files_of_torch_that_hold_something_else(tmp_path: Path, model: torch.nn.Module, name: str, said: str) -> None:
    torch.save(_wrong(model.state_dict(), name), tmp_path / "a.pt")
    with pytest.raises(ModelError) as caught:
        load_model("cnn-s", 10, tmp_path / "a.pt")
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"weights {tmp_path}/a.pt ")
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_floating_point_types_of_safetensors(tmp_path: Path, model: torch.nn.Module, dtype: torch.dtype) -> None:
    state = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in model.state_dict().items()
    }
    (tmp_path / "a.safetensors").write_bytes(safetensors.torch.save(state))
    loaded = load_model("cnn-s", 10, tmp_path / "a.safetensors")[0].state_dict()
    assert all(torch.equal(value.to(loaded[name].dtype), loaded[name]) for name, value in state.items())


def _header(text: bytes, rest: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text + rest


def _tensor(dtype: str, shape: object, end: int) -> bytes:
    return json.dumps({"0.weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}).encode()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "it is no safetensors file, or its header is larger than"),
        (b"1234567", "it is no safetensors file"),
        ((2**62).to_bytes(8, "little"), "it is no safetensors file, or its header is larger than 4194304 bytes"),
        (_header(b"[" * 10**6), "its header is not a JSON object"),
        (_header(b"[]"), "its header is not a JSON object"),
        (_header(b'{"__metadata__": {"gdkd_cache": 3}}'), "the card in its header is 3"),
        (_header(_tensor("F4", [2], 1), b"\0"), "0.weight' is of type F4; expected one of F64, F32"),
        (_header(_tensor("F32", [2**40, 2**40], 4), b"\0" * 4), "its header is of a file of"),
        (_header(_tensor("F32", [-1], 4), b"\0" * 4), "the shape of '0.weight' is [-1]"),
        (_header(_tensor("F32", "3", 4), b"\0" * 4), "the shape of '0.weight' is '3'"),
        (_header(b'{"0.weight": 3}'), "'0.weight' is of type None"),
    ],
)  # fmt: skip
def test_headers_that_lie(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    for read in (lambda: load_card(path), lambda: load_model("cnn-s", 10, path)):
        with pytest.raises(ModelError, match="cannot be read") as caught:
            read()
        assert said in str(caught.value)


def _pickled(body: bytes) -> bytes:
    """A zip file of torch with a pickle of its own."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", body)
        archive.writestr("a/version", "3")
    return file.getvalue()


_BYTEARRAY = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x02\x85R."
_MEMO = b"\x80\x02Nr\xff\xff\xff\x7f."
_HASHES = b"\x80\x02})q\x01" + b"h\x01\x86q\x01" * 200 + b"Ns."  # a key of pairs of pairs: 2**200 of them


def _bomb(path: Path, name: str) -> None:
    """Small, or sparse, files that claim gigabytes."""
    if name == "compressed":
        torch.save({"0.weight": torch.zeros(1)}, path)
        with zipfile.ZipFile(path) as archive:
            members = {member: archive.read(member) for member in archive.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, data in members.items():
                lies = data.replace(b"K\x01", b"J\0\0\0\4") if member.endswith(".pkl") else data  # 2**26 numbers
                archive.writestr(member, bytes(2**28) if member.endswith("data/0") else lies)
    elif name == "overlapping":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", b"\x80\x02}.")
            archive.writestr("a/data/0", bytes(2**20))
            archive.filelist.extend(archive.filelist[1:] * 3000)
    elif name in ("sparse file", "sparse legacy file", "sparse safetensors"):
        head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) if "legacy" in name else b"PK\x03\x04"
        path.write_bytes(b"\2" if "safetensors" in name else head)
        os.truncate(path, 2**36)
    elif name == "sparse card":
        save = safetensors.torch.save(build_model("cnn-s", 10).state_dict())
        path.write_bytes(save)
        path.with_suffix(".json").touch()
        os.truncate(path.with_suffix(".json"), 2**36)
    elif name == "huge network":
        card = {**CARD.to_json(), "name": "torchvision:vit_h_14"}
        metadata = {"gdkd_cache": json.dumps(card)}
        path.write_bytes(safetensors.torch.save(build_model("cnn-s", 10).state_dict(), metadata))
    else:
        path.write_bytes(_pickled({"bytearray": _BYTEARRAY, "memo": _MEMO, "hashes": _HASHES}[name]))


_BOMBS = {
    "compressed": ("a.pt", "it is compressed, as torch writes no file"),
    "overlapping": ("a.pt", "its members are larger than the file"),
    "bytearray": ("a.pt", "it holds an object, not a state dict"),
    "memo": ("a.pt", "it holds no state dict of tensors"),
    "hashes": ("a.pt", "it holds no state dict of tensors"),
    "sparse file": ("a.pt", "cannot be read"),
    "sparse legacy file": ("a.pth", "cannot be read"),
    "sparse safetensors": ("a.safetensors", "its header is not a JSON object"),
    "sparse card": ("a.safetensors", "a.json is larger than 65536 bytes, the most that are read"),
    "huge network": ("b.safetensors", "do not fit torchvision:vit_h_14"),
}
_MEASURE = """
import resource, sys
from pathlib import Path
import torch
from gdkd_cache.errors import ModelError
from gdkd_cache.models.opening import open_network
from gdkd_cache.models.build import build_model
build_model("torchvision:resnet18", 10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        open_network(None if path.endswith("b.safetensors") else "cnn-s", Path(path), 10, device="cpu")
    except ModelError as error:
        print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_files_that_claim_gigabytes(tmp_path: Path) -> None:
    """All in one process, whose peak of memory rises by less than 100 MB."""
    paths = []
    for name, (file, _) in _BOMBS.items():
        paths.append(tmp_path / name / file)
        paths[-1].parent.mkdir()
        _bomb(paths[-1], name)
    run = subprocess.run(
        [sys.executable, "-c", _MEASURE, *paths], capture_output=True, text=True, check=True, timeout=60
    )
    *lines, peak = run.stdout.splitlines()
    assert run.stderr == ""
    for line, (name, (_, said)) in zip(lines, _BOMBS.items(), strict=True):
        assert said in line, name
    assert int(peak) < 100_000  # in KiB


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mean": [1]}, "mean is [1]; it must be three numbers"),
        ({"mean": [0, 0, 1e60]}, "mean is"),
        ({"std": [0, 1, 1]}, "std is"),
        ({"std": [float("nan")] * 3}, "card.std[0] is nan; expected a finite number"),
        ({"std": [-1, 1, 1]}, "std is"),
        ({"extra": 1}, "card.extra is not known to this version"),
        ({"size": None}, "card.size is missing"),
        ({"size": [8]}, "size is (8,); it must be a height and a width"),
        ({"size": [0, 8]}, "size is (0, 8)"),
        ({"size": [8.0, 8]}, "card.size[0] is 8.0; expected a whole number"),
        ({"num_classes": 10**20}, "num_classes is 100000000000000000000; it must be 1 to 131072"),
        ({"num_classes": "10"}, "expected a whole number"),
        ({"accuracy": 10**60}, "card.accuracy is"),
        ({"accuracy": 1e60}, "accuracy is 1e+60; it must be 0 to 1"),
        ({"accuracy": float("nan")}, "card.accuracy is nan"),
        ({"accuracy": "0.5"}, "card.accuracy is '0.5'; expected a finite number"),
        ({"name": 3}, "card.name is 3; expected a text"),
        ({"name": ""}, "name has 0 characters"),
        ({"eval_recipe": "x" * 2000}, "eval_recipe has 2000 characters; it must have 1 to 1000"),
        ({"eval_recipe": ["none"]}, "card.eval_recipe is"),
        ({"name": "x" * 70000}, "it has 7"),
    ],
)  # fmt: skip
def test_wrong_cards_are_refused(tmp_path: Path, model: torch.nn.Module, change: dict[str, object], said: str) -> None:
    text = json.dumps(CARD.to_json() | change)
    (tmp_path / "a.safetensors").write_bytes(safetensors.torch.save(model.state_dict(), {"gdkd_cache": text}))
    if len(text) < 65000:
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(ModelError, match=r"b\.json is no model card: ") as caught:
            load_card(tmp_path / "b.pth")
        assert said in str(caught.value)
    with pytest.raises(ModelError, match=r"the card in .*a\.safetensors is no model card: ") as caught:
        load_card(tmp_path / "a.safetensors")
    assert said in str(caught.value)
    for data in (b"[" * 60000, b"[]", b"3", b"\xff\xfe", b"{", b""):
        (tmp_path / "c.json").write_bytes(data)
        with pytest.raises(ModelError, match="is no model card"):
            load_card(tmp_path / "c.pth")


def test_a_card_names_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: torch.nn.Module) -> None:
    """Neither its network nor its recipe is imported; both can be named by the user, who is told how."""
    (tmp_path / "evil_card.py").write_text(
        "from pathlib import Path\nPath('canary').touch()\nfrom gdkd_cache.models.build import build_model\n"
        "def net(num_classes): return build_model('cnn-s', num_classes)\ndef view(image): return image\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    named = replace(CARD, name="evil_card:net")
    views = replace(CARD, eval_recipe="compat:evil_card:view")
    files = replace(CARD, eval_recipe="evil.toml")
    Path("evil.toml").write_text('[[steps]]\nstep = "evil_card:view"\n')
    for name, card in {"named": named, "views": views, "files": files}.items():
        save_weights(model, card, Path(f"{name}.safetensors"))
        Path(f"{name}.pth").write_bytes(b"")
        torch.save(model.state_dict(), f"{name}.pth")
        Path(f"{name}.json").write_text(json.dumps(card.to_json()))
    for suffix in ("safetensors", "pth"):
        for name, said in {
            "named": "are of model 'evil_card:net', code that no file may load: if you have it and trust it, name it "
            "yourself, with --model 'evil_card:net'",
            "views": "evaluated with recipe 'compat:evil_card:view', which is code",
            "files": "evaluated with recipe 'evil.toml', which is code, a file or not known here, and none that a card "
            "may name: if you have it and trust it, name it yourself, with --recipe 'evil.toml'",
        }.items():
            result = _run("eval", "--data", "digits", "--weights", f"{name}.{suffix}")
            assert (result.exit_code, said in result.stderr) == (1, True), result.output
    assert not Path("canary").exists()
    assert "evil_card" not in sys.modules
    evaluate = ("eval", "--data", "digits", "--weights")
    assert _run(*evaluate, "named.safetensors", "--model", "evil_card:net").exit_code == 0
    assert _run(*evaluate, "views.safetensors", "--recipe", "compat:evil_card:view").exit_code == 0
    assert _run(*evaluate, "named.safetensors").exit_code == 0  # the user has named it in this process


def test_what_is_no_plain_file(tmp_path: Path, model: torch.nn.Module) -> None:
    """Neither a pipe nor a device is waited for."""
    for suffix in ("safetensors", "pt", "json"):
        os.mkfifo(tmp_path / f"pipe.{suffix}")
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "zero.pt").symlink_to("/dev/zero")
    save_weights(model, CARD, tmp_path / "a.safetensors")
    torch.save(model.state_dict(), tmp_path / "b.pt")
    os.mkfifo(tmp_path / "b.json")
    for name, said in {
        "pipe.safetensors": "is no plain file but a pipe",
        "pipe.pt": "is no plain file but a pipe",
        "folder.pt": "is a folder; name a file",
        "zero.pt": "is no plain file but a pipe, a socket or a device",
        "b.pt": "b.json is no plain file",
    }.items():
        with pytest.raises(ModelError, match=said):
            open_network("cnn-s", tmp_path / name, 10, device="cpu")
    for path in (Path(), Path("/")):
        with pytest.raises(ModelError, match="is a folder"):
            open_network("cnn-s", path, 10, device="cpu")


_FEW = 50


@pytest.mark.parametrize("kind", mutated.kinds())
def test_damage_of_all_kinds_is_one_line(tmp_path: Path, kind: str) -> None:
    ends = mutated.run(kind, _FEW, tmp_path)
    assert ends["taken"] + ends["refused"] == _FEW, ends
