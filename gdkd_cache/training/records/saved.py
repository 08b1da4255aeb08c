"""A training's state on disk: one `.safetensors` file of tensors, and of JSON in its header; nothing in it is code."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from xxhash import xxh3_128

from gdkd_cache.errors import MismatchError, first_line, is_out_of_memory
from gdkd_cache.limits import LARGEST_BATCH, MOST_EPOCHS, MOST_WORKERS
from gdkd_cache.schema import short
from gdkd_cache.training.optimization.schedules import load_schedule_state, schedule_state
from gdkd_cache.training.records.scores import score_of
from gdkd_cache.training.state import State

_KEY = "gdkd_cache_state"
_FORMAT = 1
_DISAGREEMENT = "disagreement"


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A state as it lies on disk.

    Attributes:
        facts: what the training is of; see `training_facts`.
        progress: the numbers of `State`, and what was found at the start.
        tensors: by name.
        told: of the optimizer, the schedule and the scaler, what is no tensor.
    """

    facts: dict[str, Any]
    progress: dict[str, Any]
    tensors: dict[str, Tensor]
    told: dict[str, Any]

    @property
    def lines(self) -> list[str]:
        """Of the metrics, one an epoch."""
        return [str(line) for line in self.progress["lines"]]


def state_bytes(
    state: State,
    facts: Mapping[str, Any],
    found: Mapping[str, Any],
    generators: Sequence[Tensor],
    totals: Mapping[str, Any],
) -> bytes:
    """The file of a state.

    Args:
        state: between two steps.
        facts: what the training is of.
        found: what was found at the start, and must be the same when it goes on.
        generators: the state of torch's random numbers of each rank, uint8.
        totals: of all ranks, as `State.totals` gives them.
    """
    tensors = {f"model.{name}": value for name, value in _tensors(state.model).items()}
    if state.ema is not None:
        tensors |= {f"ema.{name}": value for name, value in _tensors(state.ema).items()}
    optimizer = state.optimizer.state_dict()
    kept: dict[str, dict[str, Any]] = {}
    for number, values in optimizer["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{number}.{name}"] = value
            else:
                kept.setdefault(str(number), {})[name] = value
    if state.disagreement is not None:
        tensors[_DISAGREEMENT] = state.disagreement.table
    tensors |= {f"generator.{rank}": value for rank, value in enumerate(generators)}
    # Copies of their own: two names of one tensor are two there, in one order in memory.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    told = {
        "groups": [{k: v for k, v in group.items() if k != "params"} for group in optimizer["param_groups"]],
        "optimizer": kept,
        "schedule": schedule_state(state.schedule),
        "scaler": state.scaler.state_dict(),
    }
    numbers = {"epoch": state.epoch, "taken": state.taken, "seconds": state.seconds, "lines": state.lines}
    numbers["totals"] = totals
    header = json.dumps({"format": _FORMAT, "facts": facts, "progress": {**found, **numbers}, "told": told})
    # One key, as the order of several is not fixed, and equal states are equal bytes.
    return safetensors.torch.save(tensors, {_KEY: f"{_checksum(tensors, header)} {header}"})


def load_state(data: bytes, path: Path) -> Stored:
    """Read the file of a state.

    Args:
        data: the whole file.
        path: where it lies, for messages.

    Raises:
        MismatchError: it is damaged, or of another version of this package.
    """
    try:
        tensors = safetensors.torch.load(data)
        length = int.from_bytes(data[:8], "little")
        checksum, _, text = json.loads(data[8 : 8 + length])["__metadata__"][_KEY].partition(" ")
        if checksum != _checksum(tensors, text):
            raise ValueError("its checksum is another")
        header = json.loads(text)
        if header["format"] != _FORMAT:
            raise ValueError(f"it is of format {header['format']}, this version reads {_FORMAT}")
        json.dumps(header, allow_nan=False)  # refuses numbers that are none
        _check(header["progress"])
        return Stored(
            facts=dict(header["facts"]), progress=dict(header["progress"]), tensors=tensors, told=dict(header["told"])
        )
    except Exception as error:  # of damaged files, anything
        if is_out_of_memory(error):
            raise
        raise unreadable(path, error) from None


def _check(progress: Mapping[str, Any]) -> None:
    """Look whether numbers are in their ranges: the file may be a stranger's."""
    wholes = {"epoch": (0, MOST_EPOCHS), "threads": (1, MOST_WORKERS), "parts": (1, LARGEST_BATCH)}
    found = [(name, progress[name], bounds) for name, bounds in wholes.items()]
    of = progress["versions"]
    if not (isinstance(of, dict) and all(isinstance(one, str) for one in of.values())):
        raise ValueError(f"its versions are {short(of)}")
    for stretch in progress["taken"]:
        ranks, size, steps = stretch
        found += [
            ("ranks", ranks, (1, LARGEST_BATCH)),
            ("images", size, (1, LARGEST_BATCH)),
            ("steps", steps, (0, 2**48)),
        ]
    for name, value, (least, most) in found:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"{name} is {short(value)}, not in {least}..{most}")
    if len(progress["lines"]) != progress["epoch"]:
        raise ValueError(f"it has {len(progress['lines'])} lines of metrics, of {progress['epoch']} epochs")
    for line in map(json.loads, progress["lines"]):
        json.dumps(line, allow_nan=False)
        if not (line["images_per_second"] > 0 and 0 <= line[score_of(line)] <= 1 and type(line["epoch"]) is int):
            raise ValueError(f"it has metrics of {short(line)}")


def restore(state: State, stored: Stored, path: Path, rank: int, device: torch.device) -> None:
    """Make a fresh state the stored one, and torch's random numbers those of this rank then.

    Sums are all the first rank's; a rank that was not there keeps the random numbers that it has.

    Raises:
        MismatchError: it is of another network or optimizer, or damaged.
    """
    try:
        _load_into(state.model, _under(stored.tensors, "model."))
        if state.ema is not None:
            _load_into(state.ema, _under(stored.tensors, "ema."))
        _load_optimizer(state.optimizer, stored)
        load_schedule_state(state.schedule, stored.told["schedule"])
        state.scaler.load_state_dict(stored.told["scaler"])
        numbers = stored.progress
        state.epoch, state.seconds, state.lines = int(numbers["epoch"]), float(numbers["seconds"]), stored.lines
        state.taken = tuple((ranks, size, steps) for ranks, size, steps in numbers["taken"])
        totals = dict(numbers["totals"])
        if rank and totals:
            zeros = {name: [0.0] * len(totals[name]) for name in ("norms", "gradients") if name in totals}
            totals = {"images": 0, "sums": dict.fromkeys(totals["sums"], 0.0), **zeros}
        state.take_over(totals, device)
        if state.disagreement is not None:
            table = stored.tensors[_DISAGREEMENT]
            if table.shape != state.disagreement.table.shape or table.dtype != torch.float32:
                raise ValueError(f"its disagreement is {table.dtype} {list(table.shape)}")
            state.disagreement.table.copy_(table)
        set_generator(stored.tensors.get(f"generator.{rank}"), device)
        state.unproved = path
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise unreadable(path, error) from None


def generator(device: torch.device) -> Tensor:
    """The state of torch's random numbers: of the CPU, then of the device where it is another; uint8."""
    own = torch.get_rng_state()
    return torch.cat([own, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else own


def set_generator(value: Tensor | None, device: torch.device) -> None:
    """Go on from random numbers that `generator` gave; those of another kind of device are left out."""
    if value is None:
        return
    length = len(torch.get_rng_state())
    torch.set_rng_state(value[:length].clone())
    if device.type == "cuda" and len(value) > length:
        torch.cuda.set_rng_state(value[length:].clone(), device)


def unreadable(path: Path, error: Exception) -> MismatchError:
    """What is said of a state from which a training cannot go on."""
    return MismatchError(
        f"the state of the training in {path} cannot be read ({first_line(error)}); add --force to begin anew, or name "
        "another --out"
    )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _load_into(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    model.load_state_dict(model.state_dict() | tensors)
    if tensors.keys() != _tensors(model).keys():
        raise ValueError("it is of another network")


def _load_optimizer(optimizer: torch.optim.Optimizer, stored: Stored) -> None:
    groups = optimizer.state_dict()["param_groups"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    values: dict[int, dict[str, Any]] = {int(number): dict(own) for number, own in stored.told["optimizer"].items()}
    for name, value in _under(stored.tensors, "optimizer.").items():
        number, _, key = name.partition(".")
        like = parameters[int(number)]
        if value.shape == like.shape:
            value = torch.empty_like(like, dtype=value.dtype, device="cpu").copy_(
                value
            )  # in the weights' order in memory
        values.setdefault(int(number), {})[key] = value
    told = [
        {name: tuple(value) if isinstance(value, list) else value for name, value in group.items()}
        for group in stored.told["groups"]
    ]
    joined = [{**own, "params": group["params"]} for own, group in zip(told, groups, strict=True)]
    optimizer.load_state_dict({"state": dict(sorted(values.items())), "param_groups": joined})


def _checksum(tensors: Mapping[str, Tensor], header: str) -> str:
    digest = xxh3_128(header.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {list(value.shape)} ".encode())
        digest.update(memoryview(value.reshape(-1).view(torch.uint8).numpy()))  # pyright: ignore[reportArgumentType]
    return digest.hexdigest()
