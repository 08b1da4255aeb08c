"""Settings of a training by name: published ones, a TOML file a dataset, and a user's own files.

A file holds settings; `losses.NAME`, settings of a loss; and `pairs.NAME`, settings of a teacher and a student, with
`losses` of its own. Of `FILE/PAIR/LOSS` what is more special wins: the file's settings, then the loss's, the pair's,
and the pair's for that loss.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from gdkd_cache.errors import UsageError
from gdkd_cache.fields import option, option_of, plain_value
from gdkd_cache.losses.registry import LOSSES
from gdkd_cache.models.registry import MODELS
from gdkd_cache.schema import short
from gdkd_cache.terminal import printable
from gdkd_cache.training.optimization.registry import SCHEDULES
from gdkd_cache.training.options import CROSS_ENTROPY, TrainOptions
from gdkd_cache.training.records.tables import read_toml, toml_value

_FOLDER = Path(__file__).parent
_SUFFIX = ".toml"


@dataclass(frozen=True, kw_only=True)
class _CacheSettings:
    """What a preset says of the cache that it trains from."""

    teacher: str | None = option(None, "The teacher that the settings are for.")
    recipe: str | None = option(None, "What the views are made with.")


_CACHE_SETTINGS = tuple(one.name for one in fields(_CacheSettings))
_FIELDS = {
    one.name: one
    for one in (*fields(_CacheSettings), *fields(TrainOptions))
    if option_of(one) is not None and one.name not in ("out", "force")
}


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings of a training.

    Attributes:
        name: `FILE/PAIR/LOSS`, as far as the file has pairs and losses.
        settings: of `TrainOptions`, by field; what is missing has its default.
        teacher, recipe: what a cache for it is built with; None where the preset does not say.
    """

    name: str
    settings: Mapping[str, Any]
    teacher: str | None
    recipe: str | None

    def to_toml(self) -> str:
        """A file of these settings alone, to be changed."""
        values = {"teacher": self.teacher, "recipe": self.recipe, **self.settings}
        said = [f"{name} = {toml_value(values[name])}" for name in _FIELDS if values.get(name) is not None]
        return "\n".join([f"# {printable(self.name)}", *said, ""])


@dataclass(frozen=True, kw_only=True)
class _Level:
    """Settings, and more of them by loss."""

    settings: dict[str, Any] = field(default_factory=dict)
    losses: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PresetFile:
    """A file of presets.

    Attributes:
        name: as it is typed.
        text: what it holds.
        summary: what it is for, in a line.
    """

    name: str
    text: str
    summary: str
    common: _Level
    pairs: dict[str, _Level]

    def losses(self, pair: str | None = None) -> list[str]:
        """The losses that one may ask for; the first is taken where none is named."""
        return list(self.common.losses | (self.pairs[pair].losses if pair else {}))

    def preset(self, pair: str | None = None, loss: str | None = None) -> Preset:
        """The settings of a pair (None where the file has none) with a loss (None: the first)."""
        own = self.pairs[pair] if pair else _Level()
        loss = loss or next(iter(self.losses(pair)), None)
        values = self.common.settings | self.common.losses.get(loss or "", {})
        values |= own.settings | own.losses.get(loss or "", {})
        cache = {name: values.pop(name, None) for name in _CACHE_SETTINGS}
        return Preset(name="/".join(filter(None, (self.name, pair, loss))), settings=values, **cache)


def preset_files() -> Iterator[PresetFile]:
    """All files of ours, by name."""
    return (open_preset_file(path.stem) for path in sorted(_FOLDER.glob(f"*{_SUFFIX}")))


def open_preset_file(name: str) -> PresetFile:
    """A file of ours by its name, or a user's own, whose path ends in `.toml`; all of it is checked.

    Raises:
        UsageError: no such file, or one that is no TOML, or a setting that is unknown, of another type or out of range.
    """
    path = Path(name) if name.endswith(_SUFFIX) else _FOLDER / f"{name}{_SUFFIX}"
    if not name.endswith(_SUFFIX):
        _require(name, [one.stem for one in sorted(_FOLDER.glob(f"*{_SUFFIX}"))], "preset", f"or a {_SUFFIX} file")
    table = read_toml(path, "preset")
    what, summary = f"preset {name}", table.pop("summary", "")
    pairs = {pair: _level(own, f"{what}, pairs.{pair}") for pair, own in _tables(table, "pairs", what).items()}
    if not isinstance(summary, str):
        raise UsageError(f"{what}: summary is {short(summary)}; it must be a text")
    return PresetFile(
        name=name, text=path.read_bytes().decode(), summary=summary, common=_level(table, what), pairs=pairs
    )


def is_one_preset(name: str) -> bool:
    """Whether a name goes on after that of its file."""
    return bool(_split(name)[1])


def open_preset(name: str) -> Preset:
    """The settings of a name: `FILE`, `FILE/PAIR`, `FILE/PAIR/LOSS`, or `FILE/LOSS` where the file has no pairs.

    Args:
        name: FILE is the name of one of ours, or a path that ends in `.toml`.

    Raises:
        UsageError: as `open_preset_file`; or the file has no such pair or loss, or it names code of others.
    """
    stem, parts = _split(name)
    file, pair = open_preset_file(stem), None
    if file.pairs:
        pair = _require(parts.pop(0) if parts else "", file.pairs, f"preset {file.name}: pair")
    loss = _require(parts.pop(0), file.losses(pair), f"preset {file.name}: loss") if parts else None
    if parts:
        raise UsageError(f"preset is {name!r}; it must be FILE/PAIR/LOSS, without {'/'.join(parts)}")
    preset = file.preset(pair, loss)
    refuse_code(preset)
    return preset


def _split(name: str) -> tuple[str, list[str]]:
    """The file of a name, and what follows."""
    head, suffix, rest = name.partition(_SUFFIX)
    if not suffix:
        head, _, rest = name.partition("/")
    return head + suffix, [part for part in rest.split("/") if part]


def _level(table: dict[str, Any], what: str) -> _Level:
    losses = {loss: _checked(own, f"{what}, losses.{loss}") for loss, own in _tables(table, "losses", what).items()}
    return _Level(settings=_checked(table, what), losses=losses)


def _tables(table: dict[str, Any], key: str, what: str) -> dict[str, dict[str, Any]]:
    """The tables under a key, which is taken out."""
    found = table.pop(key, {})
    if not isinstance(found, dict) or not all(isinstance(own, dict) for own in found.values()):
        raise UsageError(f"{what}: {key} is {short(found)}; it must hold tables, as in [{key}.NAME]")
    return found


def _checked(table: dict[str, Any], what: str) -> dict[str, Any]:
    for name in table:
        _require(name, _FIELDS, f"{what}: setting")
    return {name: plain_value(_FIELDS[name], what, value) for name, value in table.items()}


def _require(name: str, known: Iterable[str], what: str, more: str = "") -> str:
    """The name, where it is known; else the nearest is told, or all."""
    known = list(known)
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean {near[0]}?" if near else f"it must be one of {' '.join((', '.join(known), more)).strip()}"
    raise UsageError(f"{what} is {name!r}; {meant}" if name else f"{what} is missing; {meant}")


def refuse_code(preset: Preset) -> None:
    """A file may be a stranger's: it loads no code.

    Raises:
        UsageError: it names some.
    """
    named = {"student": MODELS, "teacher": MODELS, "loss": LOSSES, "schedule": SCHEDULES}
    values = {"teacher": preset.teacher, "recipe": preset.recipe, **preset.settings}
    for name, value in values.items():
        foreign = name in ("recipe", "eval_recipe") and str(value).startswith("compat:")
        if name in named and value not in (None, CROSS_ENTROPY):
            first, colon, _ = str(value).partition(":")
            # One of ours that takes a text, or settings, stands before a colon too.
            foreign = bool(colon) and first not in named[name]
        if foreign:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"preset {preset.name}: {name} is {value!r}, code that no file may load; leave it out there, and name "
                f"it yourself with {flag}"
            )
