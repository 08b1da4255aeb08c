"""Small files that take memory: numbers that lie, what inflates, and what is mostly holes."""

import pickle
import struct
import zipfile
from collections.abc import Callable

import numpy as np
import torch
from safetensors.torch import load_file

from attacks.case import Attack, Case
from attacks.making import npy, write_holes, write_png, write_shard

_GIB = 2**30
Bomb = Callable[[Attack], list[object]]
"""Makes its files, and gives the command that meets them."""


def _label(attack: Attack) -> list[object]:
    images = attack.kit.copy(attack.kit.shards, attack.place)
    (images / "classes.txt").unlink()
    png = next((attack.kit.images / "train").rglob("*.png")).read_bytes()
    write_shard(images / "part-0.tar", [("0.cls", b"60000000"), ("0.png", png)])
    return attack.kit.build(images, attack.kit.weights, attack.place / "out.zarr")


def _picture(attack: Attack) -> list[object]:
    images = attack.kit.copy(attack.kit.images, attack.place)
    write_png(min((images / "val").rglob("*.png")), 13_300)
    return attack.kit.evaluate(images)


def _picture_in_a_shard(attack: Attack) -> list[object]:
    images = attack.kit.copy(attack.kit.shards, attack.place)
    write_png(attack.place / "large.png", 13_300)
    large = (attack.place / "large.png").read_bytes()
    write_shard(images / "part-0.tar", [("0.cls", b"1"), ("0.png", large)])
    return attack.kit.evaluate(images)


def _pickle(attack: Attack) -> list[object]:
    path = attack.kit.torch_file(attack.place)
    path.write_bytes(
        pickle.dumps({"a": bytearray(3)}, 2).replace(b"K\x03", b"\x8a\x05" + (5 * _GIB).to_bytes(5, "little"))
    )
    return attack.kit.evaluate(weights=path)


def _bytearray(attack: Attack) -> list[object]:
    path = attack.kit.torch_file(attack.place)
    size = (5 * _GIB).to_bytes(5, "little")
    data = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + size + b"\x85R."
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/version", b"3\n")
        file.writestr("archive/byteorder", b"little")
    return attack.kit.evaluate(weights=path)


def _zip(attack: Attack) -> list[object]:
    """torch's file, with its tensors deflated a thousandfold."""
    path = attack.kit.torch_file(attack.place)
    torch.save({"a": torch.zeros(1)}, path)
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in members.items():
            if name.endswith("data/0"):
                with new.open(name, "w", force_zip64=True) as file:
                    for _ in range(1500):
                        file.write(bytes(2**20))
            else:
                new.writestr(name, data)
    return attack.kit.evaluate(weights=path)


def _expanded(attack: Attack) -> list[object]:
    """Tensors of few bytes and large shapes."""
    path = attack.kit.torch_file(attack.place)
    torch.save({name: torch.zeros(1).expand(2**29) for name in load_file(attack.kit.weights)}, path)
    return attack.kit.evaluate(weights=path)


def _holes(name: str, start: bytes = b"") -> Bomb:
    """Weights, or the card beside them, of 3 GB."""

    def make(attack: Attack) -> list[object]:
        path = attack.kit.torch_file(attack.place)
        torch.save(load_file(attack.kit.weights), path)
        write_holes(attack.place / name, start)
        return attack.kit.evaluate(weights=path if name.endswith("json") else attack.place / name)

    return make


def _tar(attack: Attack) -> list[object]:
    """A member's header that promises 3 GB, which a hole keeps."""
    images = attack.kit.copy(attack.kit.shards, attack.place)
    write_shard(images / "part-0.tar", [("0.cls", b"1"), ("0.png", b"")])
    data = bytearray((images / "part-0.tar").read_bytes())
    start = 1024
    data[start + 124 : start + 136] = b"%011o\0" % (3 * _GIB)
    header = data[start : start + 148] + b" " * 8 + data[start + 156 : start + 512]
    data[start + 148 : start + 156] = b"%06o\0 " % sum(header)
    write_holes(images / "part-0.tar", bytes(data[: start + 512]), 3 * _GIB + 16 * 2**10)
    return attack.kit.evaluate(images)


def _names(attack: Attack) -> list[object]:
    """A member's name of 2 GB."""
    images = attack.kit.copy(attack.kit.shards, attack.place)
    header = bytearray(512)
    header[:13], header[100:108] = b"././@LongLink", b"0000644\0"
    header[124:136], header[156:157], header[257:265] = b"%011o\0" % (2 * _GIB), b"L", b"ustar  \0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    write_holes(images / "part-0.tar", bytes(header))
    return attack.kit.evaluate(images)


def _classes(attack: Attack) -> list[object]:
    images = attack.kit.copy(attack.kit.shards, attack.place)
    write_holes(images / "classes.txt")
    return attack.kit.evaluate(images)


def _manifest(name: str) -> Bomb:
    """A manifest of 3 GB, or one of many values."""

    def make(attack: Attack) -> list[object]:
        cache = attack.kit.copy(attack.kit.cache, attack.place)
        write_holes(cache / name)
        if name != "manifest.json":
            (cache / "manifest.json").unlink()
        return ["inspect", cache]

    return make


def _values(attack: Attack) -> list[object]:
    cache = attack.kit.copy(attack.kit.cache, attack.place)
    (cache / "manifest.json").write_bytes(b'{"a":[' + b"[]," * 8_000_000 + b"[]]}")
    return ["inspect", cache]


def _array(attack: Attack) -> list[object]:
    """An archive whose array is used, and another of 2 GB, which is not."""
    path = attack.place / "logits.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("logits.npy", attack.kit.logits.read_bytes())
        with file.open("unused.npy", "w", force_zip64=True) as member:
            member.write(npy("'|u1'", (2 * _GIB,), b""))
            for _ in range(2048):
                member.write(bytes(2**20))
        file.writestr("label.npy", npy("'<i8'", (40,), np.full(40, 99).astype("<i8").tobytes()))  # refused in the end
    return ["pack", path, attack.place / "out.zarr"]


def _shape(attack: Attack) -> list[object]:
    path = attack.place / "logits.npy"
    path.write_bytes(npy("'<f4'", (2, 10**8, 10), bytes(100)))
    return ["pack", path, attack.place / "out.zarr"]


def _object_holes(name: str) -> Bomb:
    """What comes with logits, of 3 GB."""

    def make(attack: Attack) -> list[object]:
        path = attack.place / name
        write_holes(path, npy("'<i8'", (40,), b"") if name.endswith("npy") else b"")
        option = "--labels" if name.endswith("npy") else "--keys"
        return ["pack", attack.kit.logits, attack.place / "out.zarr", option, path]

    return make


def _recipe(attack: Attack) -> list[object]:
    path = attack.place / attack.rng.choice(("recipe.json", "recipe.toml"))
    write_holes(path)
    command = attack.kit.build(attack.kit.images, attack.kit.weights, attack.place / "out.zarr")
    return [*command, "--recipe", path]


def _depth(attack: Attack) -> list[object]:
    """A header of safetensors of 10,000,000 lists in each other."""
    path = attack.place / "teacher.safetensors"
    header = b'{"a":' + b"[" * 10**7
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return attack.kit.evaluate(weights=path)


def _header(attack: Attack) -> list[object]:
    """A header of safetensors that says that it has 2 GB, which a hole keeps."""
    path = attack.place / "teacher.safetensors"
    write_holes(path, struct.pack("<Q", 2 * _GIB) + b"{")
    return attack.kit.evaluate(weights=path)


_BOMBS: tuple[Bomb, ...] = (
    _label, _picture, _picture_in_a_shard, _pickle, _bytearray, _zip, _expanded, _holes("w.safetensors"),
    _holes("w.pt", b"\x80\x02"), _holes("teacher.json", b"{"), _tar, _names, _classes, _manifest("manifest.json"),
    _manifest("sidecars.json"), _values, _array, _shape, _object_holes("labels.npy"), _object_holes("keys.txt"),
    _recipe, _depth, _header,
)  # fmt: skip


def bombs(attack: Attack) -> Case:
    """Each of them in turn: refused, in less than 1 GB."""
    return Case(command=attack.next_of(_BOMBS)(attack), refuse=True)
