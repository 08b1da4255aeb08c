"""Damaged and hostile weights, cards, specs and numbers in endless supply, the same for each seed.

By hand, as many as you like of one kind: python tests/mutated.py KIND COUNT
"""

import copy
import io
import json
import random
import struct
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from click.testing import CliRunner
from gdkd_cache_cli.main import main

from gdkd_cache.errors import GdkdCacheError
from gdkd_cache.models.build import build_model
from gdkd_cache.models.card import ModelCard
from gdkd_cache.models.opening import open_network
from gdkd_cache.models.weights import load_card, load_model, save_weights

CARD = ModelCard(name="cnn-s", num_classes=10, size=(8, 8), mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0), accuracy=0.5)
_ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**23, 10**400, 0.5, -0.0, 1e300, 1e-300),
    *(float("nan"), float("inf"), "", "none", "cnn-s", "os:system", "..:x", "x" * 5000, "\x1b[2J\n", "\ud800", "٣"),
    *([], {}, [[]], [0] * 3, [1e60] * 3, ["a"] * 3, {"a": {}}),
]


def odd(generator: random.Random) -> Any:
    """A JSON value that no one expects."""
    return copy.deepcopy(generator.choice(_ODD))


def mutated(data: bytes, generator: random.Random) -> bytes:
    """Bytes with one to four edits: changed, removed, repeated, inserted or cut, or numbers made extreme."""
    changed = bytearray(data)
    for _ in range(generator.randint(1, 4)):
        if not changed:
            return bytes(changed)
        at, length = generator.randrange(len(changed)), generator.choice([1, 1, 2, 4, 8, 32])
        match generator.randrange(7):
            case 0:
                changed[at] ^= 1 << generator.randrange(8)
            case 1:
                changed[at : at + length] = generator.randbytes(length)
            case 2:
                del changed[at : at + length]
            case 3:
                changed[at:at] = changed[at : at + length] * generator.randint(1, 3)
            case 4:
                changed[at : at + 8] = struct.pack("<q", generator.choice([0, -1, 1, 2**31, 2**62, 2**63 - 1]))
            case 5:
                changed[at : at + 4] = struct.pack("<i", generator.choice([0, -1, 1, 2**16, 2**31 - 1]))
            case _:
                del changed[generator.choice([at, len(changed) - length]) :]
    return bytes(changed)


def mutated_json(value: Any, generator: random.Random) -> Any:
    """JSON with one value replaced, removed or renamed somewhere inside."""
    value = copy.deepcopy(value)
    at = value
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return odd(generator)
        key = generator.choice(keys)
        if isinstance(at[key], dict | list) and at[key] and generator.random() < 0.7:
            at = at[key]
            continue
        action = generator.randrange(4)
        if action == 0:
            del at[key]
        elif action == 1 and isinstance(at, dict):
            at[str(odd(generator))] = at.pop(key)
        else:
            at[key] = odd(generator)
        return value


def _zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def _torch_zip(data: bytes, generator: random.Random) -> bytes:
    """A zip file of torch with damage to its bytes, or to its pickle in a sound archive."""
    if generator.random() < 0.3:
        return mutated(data, generator)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    if generator.random() < 0.2:
        name = generator.choice(list(members))
    members[name] = mutated(members[name], generator)
    return _zipped(members)


def _safetensors(data: bytes, generator: random.Random) -> bytes:
    """A safetensors file with damage to its bytes, or a header that lies."""
    if generator.random() < 0.3:
        return mutated(data, generator)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.dumps(mutated_json(json.loads(data[8 : 8 + length]), generator)).encode()
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def _card(data: bytes, generator: random.Random) -> bytes:
    if generator.random() < 0.3:
        return mutated(data, generator)
    return json.dumps(mutated_json(json.loads(data), generator)).encode()


_SPECS = ["cnn-s", "torchvision:resnet18", "torch.nn:Linear", "os:system", "..:x", "json:loads", "builtins:dict", "x:"]
_FLAGS = {
    "seed": "seed",
    "weight-decay": "weight_decay",
    "lr": "lr",
    "batch-size": "batch_size",
    "epochs": "epochs",
    "size": "size",
    "workers": "num_workers",
    "schedule": "schedule",
    "optimizer": "optimizer",
    "temperatures": "temperatures",
    "warmup": "warmup",
    "ce-weight": "ce_weight",
}


def kinds() -> dict[str, Callable[[Path, random.Random], None]]:
    """What tries one case of each kind in a folder; it raises a `GdkdCacheError` or nothing."""
    torch.manual_seed(0)
    model = build_model("cnn-s", 10)
    torch_zip, legacy, whole = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"model": model.state_dict(), "epoch": 3, "opt": CARD.std}, torch_zip)
    torch.save(model.state_dict(), legacy, _use_new_zipfile_serialization=False)
    torch.save(model, whole)
    with tempfile.TemporaryDirectory() as folder:
        save_weights(model, CARD, Path(folder, "a.safetensors"))
        saved = Path(folder, "a.safetensors").read_bytes()

    def load(name: str, data: bytes, folder: Path) -> None:
        path = folder / name
        path.write_bytes(data)
        load_model("cnn-s", 10, path)

    def card(folder: Path, generator: random.Random) -> None:
        data = _card(json.dumps(CARD.to_json()).encode(), generator)
        path = folder / "card.safetensors"
        if generator.random() < 0.5:
            path.with_suffix(".json").write_bytes(data)
            path.write_bytes(safetensors.torch.save(model.state_dict()))
        else:
            text = data.decode(errors="replace")
            path.write_bytes(safetensors.torch.save(model.state_dict(), {"gdkd_cache": text}))
        load_card(path)
        open_network(None, path, 10, device="cpu")

    def spec(folder: Path, generator: random.Random) -> None:
        text = generator.choice(_SPECS)
        build_model(mutated(text.encode(), generator).decode(errors="surrogateescape"), 10)

    def number(folder: Path, generator: random.Random) -> None:
        value = generator.randint(-3, 3) * 10.0 ** generator.randint(-9, 60)
        value = generator.choice([odd(generator), value, int(value)])
        flag = generator.choice(list(_FLAGS))
        text = str(value).encode(errors="replace").decode()
        common = ["train", "--data", "nowhere:x", "--student", "cnn-s", "--out", str(folder / "none"), "--epochs", "1"]
        result = CliRunner().invoke(main, [*common, f"--{flag}={text}"])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code in (1, 2)

    return {
        "zip": lambda folder, generator: load("a.pt", _torch_zip(torch_zip.getvalue(), generator), folder),
        "module": lambda folder, generator: load("a.pt", _torch_zip(whole.getvalue(), generator), folder),
        "legacy": lambda folder, generator: load("a.pth", mutated(legacy.getvalue()[:9000], generator), folder),
        "legacy-data": lambda folder, generator: load("a.pth", mutated(legacy.getvalue(), generator), folder),
        "safetensors": lambda folder, generator: load("a.safetensors", _safetensors(saved, generator), folder),
        "card": card,
        "spec": spec,
        "number": number,
    }


def run(kind: str, count: int, folder: Path, seed: int = 0) -> Counter[str]:
    """Try cases of a kind; how many were taken, and how many refused in one line."""
    ends: Counter[str] = Counter()
    attempt = kinds()[kind]
    for case in range(seed, seed + count):
        try:
            attempt(folder, random.Random(f"{kind} {case}"))
            ends["taken"] += 1
        except GdkdCacheError as error:
            ends["refused" if len(str(error).splitlines()) == 1 else f"{case}: {error}"] += 1
        except BaseException as error:
            error.add_note(f"{kind} {case}")
            raise
    return ends


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        print(sys.argv[1], dict(run(sys.argv[1], int(sys.argv[2]), Path(made))))
