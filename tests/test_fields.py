"""Settings that say default, range and help once: checks, specs, descriptions and command-line options follow."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
from click.testing import CliRunner
from gdkd_cache_cli.taking import takes

from gdkd_cache.errors import CacheError, UsageError
from gdkd_cache.fields import check_fields, describe_fields, option, parse_fields
from gdkd_cache.registry import Entry, Registry

if TYPE_CHECKING:
    from nowhere import Thing  # pyright: ignore[reportMissingImports]


@dataclass(frozen=True, kw_only=True)
class _Options:
    count: int = option(3, "how many", least=1, most=9)
    rate: float = option(0.5, "how fast", above=0)
    kind: str = option("a", "which", choices=("a", "b"))
    fast: bool = option(False, "whether")
    size: int | None = option(None, "how large", least=1, unset="the image's")
    steps: tuple[int, ...] = option((), "when", least=0, unset="never", joined=True, metavar="N,N")
    pair: tuple[float, float] | None = option(None, "both", least=0)
    names: tuple[str, ...] = option((), "who", flag="--name")
    thing: "str | Thing" = option("it", "what")
    place: Path | None = option(None, "where")
    odd: int = option(7, "seldom", rare=True)
    odder: bool = option(False, "never", rare=True)

    def __post_init__(self) -> None:
        check_fields(self, "options")


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("", _Options()),
        (None, _Options()),
        ("count=9,rate=2,kind=b,fast=yes", _Options(count=9, rate=2.0, kind="b", fast=True)),
        ("size=4,steps=1/5/7,thing=that", _Options(size=4, steps=(1, 5, 7), thing="that")),
        ("place=a/b,names=x/y", _Options(place=Path("a/b"), names=("x", "y"))),
    ],
)
def test_specs(text: str | None, made: _Options) -> None:
    assert parse_fields(_Options, "options", text) == made


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("count=0", "options: count is 0; it must be int in 1..9"),
        ("count=2.5", "options: count='2.5' is not int"),
        ("rate=0", "options: rate is 0.0; it must be above 0"),
        ("rate=nan", "options: rate is nan; it must be above 0 and finite"),
        ("kind=c", "options: kind is 'c'; it must be one of a, b"),
        ("fast=maybe", "options: fast='maybe' is not flag"),
        ("size=0", "options: size is 0; it must be at least 1"),
        ("steps=1/-1", "options: steps is -1; it must be at least 0"),
        ("pair=1/2/3", "options: pair is (1.0, 2.0, 3.0); it must be a list of 2"),
        ("speed=1", "options: cannot read 'speed=1'; allowed: count=3, rate=0.5, kind=a"),
        ("count", "options: cannot read 'count'; allowed"),
    ],
)
def test_wrong_specs(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_fields(_Options, "options", text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "given", [{"count": True}, {"count": 3.0}, {"rate": "1"}, {"rate": 10**400}, {"kind": 1}, {"fast": 1}, {"steps": 1}]
)
def test_values_of_other_types(given: dict[str, Any]) -> None:
    """A whole number may stand for any number; nothing else may stand for another type."""
    assert _Options(rate=2).rate == 2
    with pytest.raises(UsageError, match=f"options: {next(iter(given))} is "):
        _Options(**given)


def test_descriptions() -> None:
    rows = {row.name: row for row in describe_fields(_Options)}
    assert [*rows] == [
        "count",
        "rate",
        "kind",
        "fast",
        "size",
        "steps",
        "pair",
        "names",
        "thing",
        "place",
        "odd",
        "odder",
    ]
    assert (rows["count"].kind, rows["count"].default, rows["count"].range) == ("int", "3", "in 1..9")
    assert (rows["size"].default, rows["steps"].default, rows["place"].default) == ("the image's", "never", "")


@click.command()
@takes(options=_Options)
def _command(options: _Options) -> None:
    click.echo(repr(options))


def test_the_command_line() -> None:
    """Every field is an option with its default, range and help; values reach the dataclass."""
    shown = " ".join(CliRunner().invoke(_command, ["--help"]).output.split())
    expected = [
        "--count INTEGER how many (in 1..9) [default: 3]",
        "--steps N,N when (at least 0) [default: never]",
        "--fast whether",
        "--name TEXT who",
        "--size INTEGER how large (at least 1) [default: the image's]",
    ]
    for text in expected:
        assert text in shown
    assert CliRunner().invoke(_command, []).output.strip() == repr(_Options())
    line = "--count 4 --rate 1 --kind b --fast --size 2 --steps 1,2 --pair 1 2 --name x --name y --thing z --place p"
    made = _Options(
        count=4, rate=1.0, kind="b", fast=True, size=2, steps=(1, 2), pair=(1.0, 2.0), names=("x", "y"), thing="z",
        place=Path("p"),
    )  # fmt: skip
    assert CliRunner().invoke(_command, line.split()).output.strip() == repr(made)


def test_rare_options() -> None:
    """`--help` says how to see them, `--help-all` shows them, and both leave them as they were."""
    runner = CliRunner()
    for _ in range(2):
        short, long = (runner.invoke(_command, [flag]) for flag in ("--help", "--help-all"))
        assert (short.exit_code, long.exit_code) == (0, 0)
        assert "--odd" not in short.output
        assert short.output.splitlines()[-2].split()[0] == "--help-all"
        shown = " ".join(long.output.split())
        assert "--odd INTEGER seldom [default: 7]" in shown
        assert "--odder never" in shown
        assert "--count INTEGER how many" in shown
    made = repr(_Options(odd=8, odder=True))
    assert runner.invoke(_command, ["--odd", "8", "--odder"]).output.strip() == made
    assert runner.invoke(_command, [], default_map={"odd": 8, "odder": True}).output.strip() == made


_NUMBERS: Registry[Any] = Registry(
    "number", {"int": Entry("builtins:int", "whole", "int:TEXT"), "odd": Entry("os:sep", "no number")}
)


def test_a_registry() -> None:
    """Names of ours, of a user's own once named, and nothing else; a cache's names never import."""
    assert [*_NUMBERS] == ["int", "odd"]
    assert _NUMBERS.forms() == "int:TEXT, odd, package.module:name"
    assert _NUMBERS.load("int") is int
    assert _NUMBERS.split("int:7:8") == ("int", "7:8")
    assert _NUMBERS.split("a.b:c") == ("a.b:c", None)
    assert _NUMBERS.split("a.b:c:d:e") == ("a.b:c", "d:e")
    with pytest.raises(CacheError, match="number 'fractions:Fraction' is code that no file may load"):
        _NUMBERS.known("fractions:Fraction")
    fraction = _NUMBERS.load("fractions:Fraction")
    assert _NUMBERS.known("fractions:Fraction") is fraction
    assert _NUMBERS.name_of(fraction) == "fractions:Fraction"
    assert _NUMBERS.name_of(int) == "int"
    with pytest.raises(CacheError, match="number 'long' is not known to this version, which reads int, odd"):
        _NUMBERS.known("long")
    with pytest.raises(UsageError, match="number 'odd' cannot be called"):
        _NUMBERS.load("odd")
    for spec in ("float", "a b:c", "../x:y", "x:1", ":x", "x:"):
        with pytest.raises(UsageError, match=r"it must be one of int:TEXT, odd, package\.module:name"):
            _NUMBERS.split(spec)
