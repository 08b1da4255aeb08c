"""Folders of trainings that somebody else left: the state to go on from, its settings, its metrics."""

import json
from typing import Any

import safetensors.torch
from torch import Tensor
from xxhash import xxh3_128

from attacks.case import Attack, Case
from attacks.fuzz import NUMBERS, any_value, deep, fuzz, mutate
from attacks.making import write_holes

_STATE = "state.safetensors"
_SETTINGS = (
    "", "train", "[train", f"x = {deep()}", "[train]\nepochs = 1e999", "[train]\nstudent = 'evil:make'", "\x00",
    "[train]\nout = '../../outside'\nforce = true", "[train]\nepochs = 99999999999999999999", "[data]\ndata = 3",
    "[[cache]]\ndigest = 1", "[train]\nloss = 'gdkd:k=1e9'", "[train]\nlearning-rate = nan", "[train.train.train]",
    "[train]\nstudent = '\x1b[2J'", "[train]\n'\\u001b[2J' = 1", "include = '/etc/passwd'",
    "[train]\nweights = '/dev/zero'",
)  # fmt: skip


def fuzzed_states(attack: Attack) -> Case:
    """A state with damaged bytes: the training is refused, or goes on to the weights that it would have had."""
    out = attack.kit.copy(attack.kit.stopped, attack.place)
    path = out / _STATE
    if attack.number % 8 == 7:
        write_holes(path, path.read_bytes()[: attack.rng.choice((0, 8, 300))])
    else:
        path.write_bytes(fuzz(attack.rng, path.read_bytes()))

    def after(code: int) -> str | None:
        whole = (attack.kit.ended / "last.safetensors").read_bytes()
        return "went on to other weights" if code == 0 and (out / "last.safetensors").read_bytes() != whole else None

    return Case(command=attack.kit.long_training(out), after=after)


def forged_states(attack: Attack) -> Case:
    """A state with other numbers or tensors, and a checksum that is its own."""
    out = attack.kit.copy(attack.kit.stopped, attack.place)
    path = out / _STATE
    data = path.read_bytes()
    tensors: dict[str, Any] = safetensors.torch.load(data)
    (key,) = (metadata := json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"])
    header = json.loads(metadata[key].partition(" ")[2])
    way = attack.number % 4
    if way == 0:
        header = mutate(attack.rng, header)
    elif way == 1:
        part = attack.rng.choice(("progress", "told"))
        header[part] = mutate(attack.rng, header[part])
    elif way == 2:
        name = attack.rng.choice(list(header["progress"]))
        header["progress"][name] = attack.rng.choice((attack.rng.choice(NUMBERS), any_value(attack.rng)))
    else:
        _forge_tensor(attack, tensors)
    path.write_bytes(_signed(tensors, key, json.dumps(header)))
    return Case(command=attack.kit.long_training(out))


def run_files(attack: Attack) -> Case:
    """Settings and metrics of a run that is compared, or whose settings are taken."""
    out = attack.kit.copy(attack.kit.trained, attack.place)
    way = attack.number % 3
    if way == 0:
        path = out / "run.toml"
        path.write_bytes(fuzz(attack.rng, path.read_bytes()))
    elif way == 1:
        (out / "run.toml").write_text(attack.rng.choice(_SETTINGS))
    else:
        path = out / "metrics.jsonl"
        lines = [json.dumps(mutate(attack.rng, json.loads(line))) for line in path.read_text().splitlines()]
        path.write_text("\n".join(lines) if attack.rng.random() < 0.7 else deep())
    if way != 2 and attack.rng.random() < 0.5:
        command = ["train", "--config", out / "run.toml", "--out", attack.place / "again", "--epochs", 1]
        return Case(command=command)
    return Case(command=["compare", out, *(["--json"] if attack.rng.random() < 0.5 else [])])


def _forge_tensor(attack: Attack, tensors: dict[str, Tensor]) -> None:
    """A tensor that is gone, of another size or type, or of another name."""
    name = attack.rng.choice(sorted(tensors))
    value = tensors.pop(name)
    way = attack.rng.randrange(4)
    if way == 1:
        tensors[name] = value.reshape(-1)[:1].clone()
    elif way == 2:
        tensors[name] = value.double() if value.is_floating_point() else value.float()
    elif way == 3:
        tensors[attack.rng.choice(("model.evil", "optimizer.999999999.step", "optimizer.x.y", "generator.-1"))] = value


def _signed(tensors: dict[str, Tensor], key: str, header: str) -> bytes:
    """The file of a state; its checksum is of names, types, shapes and bytes."""
    digest = xxh3_128(header.encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)} ".encode())
        digest.update(value.numpy().tobytes())
    return safetensors.torch.save(tensors, {key: f"{digest.hexdigest()} {header}"})
