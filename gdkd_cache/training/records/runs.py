"""Trainings that are over, or under way, read from their folders; and those that differ in their seed alone, together.

A folder may be a stranger's: what it holds is of bounded size, and checked, before anything is made of it.
"""

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gdkd_cache.errors import CacheError, UsageError, first_line
from gdkd_cache.files import read_bounded
from gdkd_cache.schema import check_json, short
from gdkd_cache.training.records.layout import CONFIG, METRICS
from gdkd_cache.training.records.scores import SCORES, score_of
from gdkd_cache.training.records.tables import read_toml

_METRICS_BYTES = 2**26
_EPOCH = {
    "epoch": int,
    **{f"{score}?": float for score in SCORES},
    "agreement?": float,
    "images_per_second?": float,
    "memory_bytes?": float,
    "device_memory_bytes?": float,
    "gradients?": {
        "k": int,
        "temperature": float,
        "factor": float,
        "top_level": [float],
        "other": [float],
        "kd": [float],
    },
    str: object,
}
_RUN = {
    "train": {str: object},
    "data?": {str: object},
    "cache?": [{"digest": str, "bytes_per_view": float, str: object}],
    str: object,
}
_MOST_BYTES = 2**60
_MOST = {
    **dict.fromkeys(SCORES, 1),
    "agreement": 1,
    "images_per_second": 10**12,
    "memory_bytes": _MOST_BYTES,
    "device_memory_bytes": _MOST_BYTES,
}
_APART = ("seed", "out", "force")
"""Options that runs of one group may differ in."""
Scalar = str | int | float | bool


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training.

    Attributes:
        path: its folder.
        settings: what it was run with, by `table.name`; None for a training that left no `run.toml`.
        cache_digests, bytes_per_view: of the caches that it read; None where it says nothing of them.
        lines: of its metrics, one an epoch: `epoch`, the score and what else `_EPOCH` names are of these kinds and in
            their ranges; all else is anything that JSON can be.
        epochs: how many are done.
        score: what epochs are compared by, a name of `SCORES`.
        best_score, last_score: that, in [0, 1], on what was evaluated after each epoch.
        last_agreement: with the teacher, of the last epoch's views, in [0, 1]; None of a training without one.
        images_per_second: over all epochs; None where it was not written.
        memory_bytes, device_memory_bytes: the peak of the process and of the GPU, likewise.
    """

    path: Path
    settings: Mapping[str, Scalar | tuple[Scalar, ...]] | None
    cache_digests: tuple[str, ...] | None
    bytes_per_view: int | float | None
    lines: tuple[Mapping[str, Any], ...]
    epochs: int
    score: str
    best_score: int | float
    last_score: int | float
    last_agreement: int | float | None
    images_per_second: int | float | None
    memory_bytes: int | None
    device_memory_bytes: int | None

    def setting(self, name: str) -> str | None:
        """An option of its training as a text; None where it says nothing of it."""
        value = (self.settings or {}).get(f"train.{name}")
        return None if value is None else str(value)

    @property
    def unfinished(self) -> int | None:
        """Of how many epochs it has done fewer; None where it is done, or does not say."""
        wanted = (self.settings or {}).get("train.epochs")
        return wanted if isinstance(wanted, int) and wanted > self.epochs else None


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Attributes: mean; deviation: of the sample (n - 1), None of one value; values: in the order of the runs."""

    mean: float
    deviation: float | None
    values: tuple[int | float, ...]

    @classmethod
    def of(cls, values: Iterable[int | float | None]) -> "Spread | None":
        """Of values of which some may be missing; None where all are."""
        known = tuple(value for value in values if value is not None)
        if not known:
            return None
        deviation = statistics.stdev(known) if len(known) > 1 else None
        return cls(mean=statistics.fmean(known), deviation=deviation, values=known)


def read_run(path: Path) -> Run:
    """Read the folder of a training.

    Args:
        path: holds `metrics.jsonl` and, of newer versions, `run.toml`.

    Raises:
        UsageError: it is none, or one of these is larger than any training's, no JSON or TOML, or holds something else.
        OSError: it cannot be read.
    """
    if not path.is_dir():
        raise UsageError(f"run {path} {'is no folder' if path.exists() else 'does not exist'}; name one of train --out")
    lines = _metrics(path / METRICS)
    settings = digests = num_bytes = None
    if (path / CONFIG).exists():
        settings, digests, num_bytes = _settings(path / CONFIG)
    score = score_of(lines[0])
    scores = [line[score] for line in lines]
    speeds = [line["images_per_second"] for line in lines if line.get("images_per_second", 0) > 0]
    return Run(
        path=path,
        settings=settings,
        cache_digests=digests,
        bytes_per_view=num_bytes,
        lines=tuple(lines),
        epochs=len(lines),
        score=score,
        best_score=max(scores),
        last_score=scores[-1],
        last_agreement=lines[-1].get("agreement"),
        images_per_second=statistics.harmonic_mean(speeds) if speeds else None,  # epochs have equally many images
        memory_bytes=_largest(lines, "memory_bytes"),
        device_memory_bytes=_largest(lines, "device_memory_bytes"),
    )


def group_runs(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that differ in nothing but their seed together, in the order of the first of each.

    One that left no `run.toml` is alone.

    Raises:
        UsageError: a folder is given twice.
    """
    groups: dict[Any, list[Run]] = {}
    seen: set[Path] = set()
    for run in runs:
        place = run.path.resolve()
        if place in seen:
            raise UsageError(f"run {run.path} is given twice; its spread would be too small")
        seen.add(place)
        groups.setdefault(place if run.settings is None else _key(run), []).append(run)
    return list(groups.values())


def differences(groups: Sequence[Sequence[Run]]) -> dict[str, list[str]]:
    """The settings that differ between groups, by name, each with its value in every group that says its settings.

    A setting that a group does not have is `unset`, and a group that left no `run.toml` has `?` for all.
    """
    said = [dict(_key(group[0])) if group[0].settings is not None else None for group in groups]
    names = sorted({name for one in said if one is not None for name in one})
    rows = {name: ["?" if one is None else one.get(name, "unset") for one in said] for name in names}
    return {name: row for name, row in rows.items() if len({value for value in row if value != "?"}) > 1}


def _key(run: Run) -> tuple[tuple[str, str], ...]:
    """What runs of one group have in common: settings as texts, and which caches."""
    settings = {
        name: ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in (run.settings or {}).items()
        if name not in {f"train.{option}" for option in _APART}
    }
    if run.cache_digests:
        settings["cache.digest"] = ",".join(run.cache_digests)
    return tuple(sorted(settings.items()))


def _metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of the epochs that are done; one that is being written, at the end, is none yet."""
    lines = []
    with _understood(path):
        text = read_bounded(path, _METRICS_BYTES, "file", UsageError).decode()
    for number, line in enumerate(text.split("\n")[:-1], 1):
        with _understood(f"{path}: line {number}"):
            lines.append(json.loads(line))
            check_json("epoch", lines[-1], _EPOCH)
            for name, most in _MOST.items():
                _require_range(name, lines[-1].get(name, 0), most)
            if score_of(lines[-1]) != (score := score_of(lines[0])):
                raise ValueError(f"it has no {score}, as earlier epochs have")
    if not lines:
        raise UsageError(f"run {path.parent} has no epoch yet: {path.name} is empty")
    return lines


def _settings(path: Path) -> tuple[dict[str, Scalar | tuple[Scalar, ...]], tuple[str, ...] | None, int | float | None]:
    """The settings by `table.name`, and of the caches their digests and the bytes of a view of all."""
    settings: dict[str, Scalar | tuple[Scalar, ...]] = {}
    with _understood(path):
        table = read_toml(path, "file")
        check_json("run", table, _RUN)
        for head in ("train", "data"):
            for name, value in table.get(head, {}).items():
                items = tuple(value) if isinstance(value, list) else (value,)
                if not all(map(_is_scalar, items)):
                    raise ValueError(f"{head}.{short(name)} is {short(value)}; it must be a text, a number or a list")
                settings[f"{head}.{name}"] = items if isinstance(value, list) else value
        caches = table.get("cache", [])
        for one in caches:
            _require_range("bytes_per_view", one["bytes_per_view"], _MOST_BYTES)
    if not caches:
        return settings, None, None
    return settings, tuple(one["digest"] for one in caches), sum(one["bytes_per_view"] for one in caches)


def _is_scalar(value: object) -> bool:
    """Whether it is a text, a truth value or a number, and a whole one that 64 bits hold."""
    return isinstance(value, str | float) or (isinstance(value, int) and abs(value) < 2**64)


def _require_range(name: str, value: int | float, most: int) -> None:
    if not 0 <= value <= most:
        raise ValueError(f"{name} is {short(value)}; it must be 0 to {most:g}")


@contextmanager
def _understood(what: object) -> Iterator[None]:
    """Have whatever a file holds and should not be one line that names it."""
    try:
        yield
    except UsageError:
        raise
    except (CacheError, ValueError, RecursionError) as error:
        raise UsageError(f"{what} cannot be read: {first_line(error)}") from None


def _largest(lines: Iterable[Mapping[str, Any]], name: str) -> int | None:
    """The largest of what some epochs say; None where none says it."""
    return max((int(line[name]) for line in lines if name in line), default=None)
