"""Checkpoints as they are found: a table of the files that people meet, which load, and what the others say."""

import argparse
import collections
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from gdkd_cache.errors import ModelError
from gdkd_cache.models.build import build_model
from gdkd_cache.models.weights import load_model

State = dict[str, Any]
Make = Callable[[State, State], object]


@pytest.fixture(scope="module")
def state() -> State:
    """The weights that a file is about."""
    return _state(0)


def _state(seed: int) -> State:
    torch.manual_seed(seed)
    return dict(build_model("cnn-s", 10).state_dict())


def _under(prefix: str, state: State) -> State:
    return collections.OrderedDict((f"{prefix}{name}", value) for name, value in state.items())


def _adam(state: State) -> State:
    return {"state": {i: {"step": 3, "exp_avg": value} for i, value in enumerate(state.values())}, "param_groups": []}


_NAMESPACE = argparse.Namespace(lr=0.1, path=Path("a/b"), steps={1, 2}, seeds=frozenset({3}), best=np.float64(0.5))
_LIGHTNING = {"pytorch-lightning_version": "2.5.0", "epoch": 3, "loops": {}, "hyper_parameters": {"lr": 0.1}}

_TAKEN: dict[str, Make] = {
    "a state dict": lambda own, other: own,
    "torchvision's classic, without counters": lambda own, other: {
        name: value for name, value in own.items() if not name.endswith("num_batches_tracked")
    },
    "model": lambda own, other: {"model": own, "epoch": 3},
    "state_dict, as ImageNet's example and timm write it": lambda own, other: {
        "state_dict": own,
        "best_acc1": torch.tensor(0.5),
        "optimizer": _adam(other),
    },
    "net, with a dictionary around it": lambda own, other: {"checkpoint": {"net": own}},
    "DataParallel": lambda own, other: _under("module.", own),
    "DataParallel in state_dict": lambda own, other: {"state_dict": _under("module.", own)},
    "torch.compile": lambda own, other: {"model": _under("_orig_mod.", own)},
    "both of them": lambda own, other: _under("module._orig_mod.", own),
    "Lightning": lambda own, other: {
        **_LIGHTNING,
        "state_dict": {**_under("model.", own), "criterion.weight": torch.ones(10)},
        "optimizer_states": [_adam(other)],
    },
    "mdistiller's teacher": lambda own, other: {"model": own, "epoch": 240, "best_acc": torch.tensor(79.4)},
    "mdistiller's student beside a teacher of another shape": lambda own, other: {
        "model": _under("module.student.", own) | _under("module.teacher.", build_model("cnn-l", 10).state_dict()),
        "optimizer": _adam(other),
    },
    "RepDistiller, with its options": lambda own, other: {"opt": _NAMESPACE, "model": own, "optimizer": _adam(other)},
    "DeiT, with its arguments": lambda own, other: {
        "model": own,
        "optimizer": _adam(other),
        "scaler": {"scale": 65536.0, "growth_factor": 2.0},
        "args": _NAMESPACE,
    },
    "an average alone": lambda own, other: {"model_ema": {"n_averaged": torch.tensor(3), **_under("module.", own)}},
    "with a profiler's counters": lambda own, other: {**own, "total_ops": torch.zeros(1), "0.total_ops": torch.ones(1)},
    "a default dictionary": lambda own, other: collections.defaultdict(list, own),
    "half precision": lambda own, other: {
        name: value.half() if value.is_floating_point() else value for name, value in own.items()
    },
}


@pytest.mark.parametrize("how", ["zip", "zip-4", "legacy"])
@pytest.mark.parametrize("kind", _TAKEN)
def test_what_loads(tmp_path: Path, state: State, kind: str, how: str) -> None:
    given: dict[str, Any] = {
        "zip": {},
        "zip-4": {"pickle_protocol": 4},
        "legacy": {"_use_new_zipfile_serialization": False},
    }[how]
    torch.save(_TAKEN[kind](state, _state(1)), tmp_path / "checkpoint.pth.tar", **given)
    loaded = load_model("cnn-s", 10, tmp_path / "checkpoint.pth.tar")[0].state_dict()
    assert loaded.keys() == state.keys()
    for name, value in state.items():
        expected = value.half().float() if kind == "half precision" and value.is_floating_point() else value
        assert torch.equal(loaded[name], expected) or name.endswith("num_batches_tracked"), name


_CHOSEN: dict[str, tuple[Make, str, str]] = {
    "torchvision's references": (
        lambda own, other: {"model": other, "model_ema": {"n_averaged": torch.tensor(3), **_under("module.", own)}},
        "model, 'model_ema.module'",
        "model_ema",
    ),
    "DeiT": (lambda own, other: {"model": own, "model_ema": other, "args": _NAMESPACE}, "model, model_ema", "model"),
    "timm": (
        lambda own, other: {"state_dict": other, "state_dict_ema": own},
        "state_dict, state_dict_ema",
        "state_dict_ema",
    ),
    "a student and a teacher that are alike": (
        lambda own, other: {"model": _under("module.student.", own) | _under("module.teacher.", other)},
        "'model.module.student', 'model.module.teacher'",
        "model.module.student",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", _CHOSEN)
def test_several_are_never_silently_one(tmp_path: Path, state: State, kind: str) -> None:
    make, named, key = _CHOSEN[kind]
    path = tmp_path / "a.pth"
    torch.save(make(state, _state(1)), path)
    with pytest.raises(ModelError) as caught:
        load_model("cnn-s", 10, path)
    said = f"hold more than one set for cnn-s with 10 classes: {named}; say which with --weights-key"
    assert str(caught.value) == f"weights {path} {said}"
    loaded = load_model("cnn-s", 10, path, key=key)[0].state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    with pytest.raises(ModelError, match=r"have no best, as --weights-key says; they have (model|state_dict)"):
        load_model("cnn-s", 10, path, key="best")


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (self.path,))


class _Exits:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("from pathlib import Path; Path('canary').touch()",))


def _circle(own: State, other: State) -> State:
    circle: State = {"own": own}
    circle["circle"] = circle
    return circle


_REFUSED: dict[str, tuple[Make, str]] = {
    "a whole network": (lambda own, other: build_model("cnn-s", 10), "it holds an object, not a state dict of tensors"),
    "a whole network in a dictionary": (
        lambda own, other: {"model": build_model("cnn-s", 10), "epoch": 3},
        "save the network's state_dict()",
    ),
    "another network": (
        lambda own, other: {"model": build_model("torchvision:squeezenet1_1", 10).state_dict()},
        "do not fit cnn-s with 10 classes: '0.weight' is missing",
    ),
    "other classes": (
        lambda own, other: {"state_dict": _under("module.", build_model("cnn-s", 7).state_dict())},
        "'13.bias' is [7], expected [10] (under 'state_dict.module')",
    ),
    "a part of it": (
        lambda own, other: {name: own[name] for name in list(own)[3:]},
        "'0.weight' is missing",
    ),
    "more than it": (
        lambda own, other: own | {"metric.total": torch.ones(1)},
        "'metric.total' is not part of it",
    ),
    "an optimizer alone": (lambda own, other: {"optimizer": _adam(own)}, "it holds no state dict of tensors"),
    "a list": (lambda own, other: [own], "it holds no state dict of tensors"),
    "a circle": (_circle, "hold more than one set for cnn-s with 10 classes: "),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", _REFUSED)
def test_what_is_refused(tmp_path: Path, state: State, kind: str) -> None:
    make, said = _REFUSED[kind]
    torch.save(make(state, _state(1)), tmp_path / "a.pth")
    with pytest.raises(ModelError) as caught:
        load_model("cnn-s", 10, tmp_path / "a.pth")
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_torchscript_program_is_named_as_such(tmp_path: Path) -> None:
    program = torch.jit.trace(build_model("cnn-s", 10).eval(), torch.zeros(1, 3, 8, 8))
    assert isinstance(program, torch.jit.ScriptModule)
    program.save(str(tmp_path / "a.pt"))
    with pytest.raises(ModelError, match="it is a TorchScript program, not a state dict of tensors"):
        load_model("cnn-s", 10, tmp_path / "a.pt")


@pytest.mark.parametrize("legacy", [False, True])
def test_no_code_of_a_file_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: State, legacy: bool) -> None:
    """What lies beside the tensors is neither imported nor called, while they load; in their place it is refused."""
    monkeypatch.chdir(tmp_path)
    for evil in (_Canary(tmp_path / "canary"), _Exits()):
        beside = {"model": state, "opt": evil, "args": {"x": [evil]}}
        torch.save(beside, "a.pth", _use_new_zipfile_serialization=not legacy)
        assert torch.equal(load_model("cnn-s", 10, Path("a.pth"))[0].state_dict()["0.weight"], state["0.weight"])
        for place in ({"model": evil}, evil, {"model": state | {"0.weight": evil}}):
            torch.save(place, "a.pth", _use_new_zipfile_serialization=not legacy)
            with pytest.raises(ModelError):
                load_model("cnn-s", 10, Path("a.pth"))
        Path("a.pth").write_bytes(pickle.dumps({"model": evil}))
        with pytest.raises(ModelError, match=r"it is no file of torch\.save"):
            load_model("cnn-s", 10, Path("a.pth"))
    assert not Path("canary").exists()
    pickle.loads(pickle.dumps(_Exits()))  # it would have
    assert Path("canary").exists()


def _shards(folder: Path, state: State) -> dict[str, Any]:
    """Weights in two files and their index, as large models are saved."""
    names = list(state)
    places = {name: f"model-{1 + (i >= 5):05}-of-00002.safetensors" for i, name in enumerate(names)}
    for place in set(places.values()):
        part = {name: state[name].clone() for name in names if places[name] == place}
        (folder / place).write_bytes(safetensors.torch.save(part))
    index = {"metadata": {"total_size": 3}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_weights_in_several_files(tmp_path: Path, state: State) -> None:
    _shards(tmp_path, state)
    path = tmp_path / "model.safetensors.index.json"
    model, checksum = load_model("cnn-s", 10, path)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    _shards(tmp_path, state | {"0.weight": state["0.weight"] + 1})
    assert load_model("cnn-s", 10, path)[1] != checksum


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight_map": {"0.weight": "../a.safetensors"}}, "it names '../a.safetensors', which is no file beside it"),
        ({"weight_map": {"0.weight": "/etc/passwd"}}, "which is no file beside it"),
        ({"weight_map": {"0.weight": ".."}}, "which is no file beside it"),
        ({"weight_map": {"0.weight": "b.safetensors"}}, "b.safetensors does not exist"),
        ({"weight_map": {"x": "model-00001-of-00002.safetensors"}}, "holds x, which it does not"),
        ({"weight_map": {"0.weight": 3}}, "expected a text"),
        ({"weight_map": [1]}, "index.weight_map is [1]"),
        ({"weight_map": {str(i): f"{i}.safetensors" for i in range(1001)}}, "it names 1001 files, more than 1000"),
    ],
)
def test_indices_that_lie(tmp_path: Path, state: State, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(_shards(tmp_path, state) | change))
    with pytest.raises(ModelError) as caught:
        load_model("cnn-s", 10, path)
    assert said in str(caught.value)
    for data in (b"[]", b"3", b"{", b"\xff", b"[" * 10**6):
        path.write_bytes(data)
        with pytest.raises(ModelError, match="cannot be read"):
            load_model("cnn-s", 10, path)


def test_dictionaries_that_unfold(tmp_path: Path) -> None:
    """Some that hold each other in a small file are followed no further than a bound."""
    level: State = {"x": torch.zeros(1)}
    for _ in range(5):
        level = {f"{i}" * 100: level for i in range(500)}
    torch.save(level, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").stat().st_size < 2**20
    with pytest.raises(ModelError, match="its dictionaries hold too much, or each other"):
        load_model("cnn-s", 10, tmp_path / "a.pth")
