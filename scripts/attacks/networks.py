"""Weights, the cards beside them, and models: what somebody else trained."""

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from attacks.case import Attack, Case
from attacks.fuzz import any_value, deep, fuzz, mutate
from gdkd_cache.models.safetensors_file import CARD_KEY

_CODE = ("evil:make", "evil:Thing", "evil:make:x", "os:system", "torch.nn:Linear", "..:x", "compat:evil:make", "evil")


def _with_card(attack: Attack, card: dict[str, Any] | bytes) -> Path:
    """The kit's weights with another card: in their header, or in a file beside them, as of version 0.1.0."""
    data = card if isinstance(card, bytes) else json.dumps(card).encode()
    weights, inside = attack.place / "teacher.safetensors", attack.rng.random() < 0.5
    header = {CARD_KEY: data.decode(errors="replace")} if inside else None
    weights.write_bytes(save(load_file(attack.kit.weights), header))
    if not inside:
        weights.with_suffix(".json").write_bytes(data)
    return weights


def _use(attack: Attack, weights: Path) -> list[object]:
    """Weights are evaluated, or are a build's teacher."""
    if attack.rng.random() < 0.5:
        return attack.kit.evaluate(weights=weights)
    return attack.kit.build(attack.kit.images, weights, attack.place / "out.zarr")


def cards_that_name_code(attack: Attack) -> Case:
    """A card's network or recipe is somebody's module, which must not be imported."""
    field = ("name", "eval_recipe")[attack.number % 2]
    code = _CODE[attack.number // 2 % len(_CODE)]
    if field == "eval_recipe" and attack.rng.random() < 0.5:
        recipe = attack.place / "recipe.json"
        recipe.write_text(json.dumps({"steps": [{"step": code}]}))
        code = str(recipe)
    weights = _with_card(attack, attack.kit.card | {field: code})
    return Case(command=attack.kit.evaluate(weights=weights), refuse=True)


def card_values(attack: Attack) -> Case:
    """A card of values that no card has: refused, or what is built with it can be read."""
    nan, inf = float("nan"), float("inf")
    change = attack.next_of(
        [{"accuracy": value} for value in (10**60, -(10**60), nan, inf, -1, 2, "1", [1], True)]
        + [{field: [value, 0.5, 0.5]} for field in ("mean", "std") for value in (nan, inf, 1e300, 10**400, "a", None)]
        + [{"std": [0.0, 1.0, 1.0]}, {"std": [-1.0, 1.0, 1.0]}, {"std": [1e-320, 1, 1]}, {"mean": [0.5]}, {"mean": 1}]
        + [{"num_classes": value} for value in (0, -1, 10**9, 10**30, "10", 10.0, None, True)]
        + [{"size": value} for value in ([0, 0], [8, -8], [10**9, 10**9], ["8", "8"], [8], 8, [8, 8, 8], [True, True])]
        + [{"name": value} for value in ("", "cnn-s:", "x" * 10_000, "\x1b[2J\n", 1, None, ["cnn-s"], "torchvision:")]
        + [{"more": 1}, {"eval_recipe": 1}, {"eval_recipe": "\x1b[2J"}, {"eval_recipe": "none:" + "x" * 9999}]
    )
    weights = _with_card(attack, attack.kit.card | change)
    out = attack.place / "out.zarr"
    if "accuracy" in change:
        command = attack.kit.build(attack.kit.images, weights, out)
        return Case(command=command, then=["verify", out, "--deep", "--data", attack.kit.data(attack.kit.images)])
    return Case(
        command=[*attack.kit.evaluate(weights=weights), "--json"],
        after=lambda code: _is_json(attack) if code == 0 else None,
    )


def _is_json(attack: Attack) -> str | None:
    said = (attack.kit.folder / "logs" / "out").read_text()
    try:
        json.loads(said, parse_constant=int)
    except ValueError:  # `int` of NaN, too
        return f"prints what is not JSON: {said[:80]}"
    return None


def fuzzed_cards(attack: Attack) -> Case:
    card, way = attack.kit.card, attack.number % 4
    if way == 0:
        options = [b"", b"null", b"[]", b"1", b"\xff\xfe", b"{" * 9000, b"{}", b'{"a":1,"a":2}', b"[" * 10**6]
        weights = _with_card(attack, attack.next_of(options))
    elif way == 1:
        name = attack.rng.choice(list(card))
        weights = _with_card(
            attack, json.dumps(card | {name: 0}).replace(f'"{name}": 0', f'"{name}": {deep()}').encode()
        )
    elif way == 2:
        weights = _with_card(attack, fuzz(attack.rng, json.dumps(card).encode()))
    else:
        weights = _with_card(attack, mutate(attack.rng, card))
    command = _use(attack, weights)
    return Case(command=command, then=["inspect", attack.place / "out.zarr"] if command[0] == "build" else None)


class _Runs:
    """A pickle that executes."""

    def __init__(self, kind: int) -> None:
        self._kind = kind

    def __reduce__(self) -> Any:
        import os

        mark = 'echo x > "$ATTACK_MARK"'
        return ((os.system, (mark,)), (eval, ("__import__('evil')",)), (exec, ("import evil",)))[self._kind % 3]


def hostile_weights(attack: Attack) -> Case:
    """Weights that execute, that are none, or whose keys and types are of no network."""
    weights = load_file(attack.kit.weights)
    path = attack.kit.torch_file(attack.place)
    ways: list[Any] = [
        lambda: path.write_bytes(pickle.dumps(_Runs(attack.number))),
        lambda: torch.save({"state_dict": _Runs(attack.number)}, path),
        lambda: path.write_bytes(b""),
        lambda: torch.save(dict(enumerate(weights.values())), path),
        lambda: torch.save({(1, 2): next(iter(weights.values()))}, path),
        lambda: torch.save(list(weights.values()), path),
        lambda: torch.save(5, path),
        lambda: torch.save({"state_dict": {"state_dict": weights}, "model": weights}, path),  # which of both?
        lambda: torch.save({name: value.tolist() for name, value in weights.items()}, path),
        lambda: torch.save({name: value.to_sparse() for name, value in weights.items()}, path),
        lambda: torch.save({name: value.to(torch.complex64) for name, value in weights.items()}, path),
        lambda: torch.save({name: value.to("meta") for name, value in weights.items()}, path),
        lambda: torch.save(
            {name: value * float("nan") if value.is_floating_point() else value for name, value in weights.items()},
            path,
        ),
        lambda: torch.save(torch.nn.Linear(2, 2), path),
        lambda: torch.save({f"\x1b[2J\n{name}": value for name, value in weights.items()}, path),
        lambda: path.write_bytes(pickle.dumps({"a": bytearray(10)})),
        lambda: path.write_bytes(b"\x80\x02" + b"(" * 100_000 + b"."),
        lambda: path.write_bytes(b"PK\x03\x04" + bytes(100)),
        lambda: path.mkdir(),
        lambda: path.symlink_to(attack.kit.outside / "precious.txt"),
    ]
    attack.next_of(ways)()
    return Case(command=_use(attack, path), refuse=True)


def fuzzed_weights(attack: Attack) -> Case:
    """Bytes of safetensors, of torch's zip, of the pickle in it, or a header that lies."""
    way = attack.number % 4
    path = attack.kit.copy(attack.kit.weights, attack.place)
    if way == 0:
        path.write_bytes(fuzz(attack.rng, path.read_bytes()))
    elif way == 1:
        data = path.read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        header = json.dumps(mutate(attack.rng, json.loads(data[8 : 8 + size]))).encode(errors="replace")
        path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + size :])
    else:
        path = attack.kit.torch_file(attack.place)
        torch.save(load_file(attack.kit.weights), path)
        path.write_bytes(fuzz(attack.rng, path.read_bytes()) if way == 2 else _fuzzed_pickle(attack, path))
    return Case(command=_use(attack, path))


def _fuzzed_pickle(attack: Attack, path: Path) -> bytes:
    """torch's zip, whole but for the pickle in it."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, fuzz(attack.rng, data) if name.endswith("data.pkl") else data)
    return out.getvalue()


def models(attack: Attack) -> Case:
    """Names of models, of the user's own, that cannot be what they should be: on images of 8x8."""
    name = attack.next_of(
        ("torchvision:alexnet", "torch.nn:Linear", "os:system", "..:x", "torchvision:googlenet", "", ":", "a:b:c:d",
         "torchvision:", "torchvision:nonsense", "torchvision:squeezenet1_0", "torch:rand", "builtins:print",
         "os.path:join", "json:nothing", "nowhere:x", "json:loads", "sys:exit", "torchvision:inception_v3",
         "torchvision:__loader__", "collections:OrderedDict", "torch.nn:ReLU", "cnn-s:x", "torchvision:get_model",
         "torchvision:maxvit_t", "\x1b[2J", "x" * 5000, "torchvision:fasterrcnn_resnet50_fpn", "builtins:list")
    )  # fmt: skip
    images = attack.kit.data(attack.kit.images)
    out = attack.place / "out"
    command = [
        "train",
        "--loss",
        "ce",
        "--data",
        images,
        "--student",
        name,
        "--epochs",
        1,
        "--workers",
        0,
        "--out",
        out,
    ]
    return Case(command=[*command, "--device", "cpu"], refuse=name not in ("torchvision:squeezenet1_0",))


def any_card_value(attack: Attack) -> Case:
    """One field of a card, of any kind."""
    card = attack.kit.card
    weights = _with_card(attack, card | {attack.next_of(list(card)): any_value(attack.rng)})
    command = _use(attack, weights)
    return Case(command=command, then=["inspect", attack.place / "out.zarr"] if command[0] == "build" else None)
