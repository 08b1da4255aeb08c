"""What is printed: one place escapes it all, whatever names hold and whatever the stream can show."""

import ast
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from click.testing import CliRunner
from gdkd_cache_cli.main import main
from hypothesis import given
from hypothesis import strategies as st

import gdkd_cache
from gdkd_cache.progress import progress
from gdkd_cache.terminal import guard, log_lines, printable, say, say_json, say_table

FORGED = "31 objects checked, whole; sha256:0"
HOSTILE = [
    f"a\n{FORGED}", f"a\r{FORGED}", "\x1b[2J\x1b[H", "\x9b2J", "\x07\x08\x00\x7f", "a\u2028b\u2029c\x85d",
    "\u202egnp.exe", "\u2066x\u2069", "\u061c\u200f\u200b\ufeff", "\udcff\udc80", "\U000e0041", "\ue000\uffff",
]  # fmt: skip
_ROOTS = [Path(gdkd_cache.__file__).parent, Path(main.callback.__code__.co_filename).parent]  # pyright: ignore


def _is_one_safe_line(text: str) -> bool:
    return text.endswith("\n") and text[:-1].isprintable()


def test_nothing_else_prints() -> None:
    """All of the library and its commands: a new command cannot forget to escape."""
    prints = {"print", "echo", "secho", "pprint", "Console", "StreamHandler", "basicConfig", "stdout", "stderr"}
    allowed = {"terminal.py": prints, "progress.py": {"Console"}}  # the bar, whose text is escaped
    found = []
    for path in (path for root in _ROOTS for path in root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None
            if name in prints - allowed.get(path.name, set()):
                found.append(f"{path}:{node.lineno}: {name}")  # pyright: ignore[reportAttributeAccessIssue]
    assert found == []


@given(st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(codec=None))))
def test_a_text_is_one_safe_line(text: str) -> None:
    assert printable(text).isprintable()
    assert printable(printable(text)) == printable(text)


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_all_ways_out(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    say("one", text, error=True)
    assert capsys.readouterr().err.count("\n") == 2
    say(text)
    assert _is_one_safe_line(capsys.readouterr().out)
    say_json({text: [text]})
    said = capsys.readouterr().out
    assert said.isascii()
    assert json.loads(said) == {text: [text]}
    say_table(["a[red]b", text], [("[link=x]", [text, "next"])], title=text)
    said = capsys.readouterr().out
    assert said.replace("\n", "").isprintable()
    assert "[link=x]" in said
    assert "a[red]b" in said
    assert not any(line.startswith(FORGED) for line in said.splitlines())


def test_logs_and_warnings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("always")
        patch.setattr(logging.getLogger(), "handlers", [])
        patch.setattr(sys, "excepthook", sys.excepthook)
        log_lines(logging.INFO)
        guard()
        for text in HOSTILE:
            logging.getLogger("gdkd_cache.somewhere").warning("%s", text)
            warnings.warn(text, stacklevel=1)
            sys.excepthook(ValueError, ValueError(text), None)
    said = capsys.readouterr().err
    assert said.count("\n") == 3 * len(HOSTILE)
    assert said.replace("\n", "").isprintable()


def test_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the bar is a terminal's; nothing done yet is no division by zero."""
    monkeypatch.setattr("gdkd_cache.progress._PLAIN_INTERVAL", 0.0)
    with progress(f"{{x}}[b]\x1b[2J\n{FORGED}", 2, "rows") as advance:
        advance(0)
        advance(1)
    said = capsys.readouterr().err
    assert said.count("\n") == 2
    assert "\x1b" not in said
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress(f"{{x}}[b]\x07\n{FORGED}", 2, "rows") as advance:
        advance(1)
    said = capsys.readouterr().err
    assert "\\n" in said
    assert f"\n{FORGED}" not in said


def test_click_errors_too() -> None:
    """Names that a shell's * puts on the command line, also those that are no text."""
    for arguments in (
        ["verify", "a", HOSTILE[0]],
        [f"--{HOSTILE[2]}"],
        ["show", "a", "--data", "digits", "--out", "\udcff\n.x"],
    ):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2
        last = result.stderr.splitlines()[-1]
        assert last.startswith("Error: ")
        assert last.isprintable()


def test_a_forged_file_name(tmp_path: Path, digits_cache: Path) -> None:
    """A foreign file in a cache whose name forges a verdict, and one that is no text, on a terminal of ASCII."""
    cache = tmp_path / "c.zarr"
    shutil.copytree(digits_cache, cache)
    for name in (b"x\n31 objects checked, whole; sha256:0", b"\xff\xfe", "\u202eé☃".encode(), b"\x1b[2J"):
        (cache / os.fsdecode(name)).write_bytes(b"")
    command = [sys.executable, "-c", "from gdkd_cache_cli.main import main; main()", "verify", str(cache)]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    run = subprocess.run(command, capture_output=True, env=environment, check=False)
    lines = (run.stdout + run.stderr).decode("ascii").splitlines()
    assert run.returncode == 1
    assert len(lines) == 5
    assert all(line.isprintable() for line in lines)
    assert not any(line.startswith(FORGED) for line in lines)
