"""What the README files name is there: files and headings that are linked, and commands with their options."""

import re
import shlex
from pathlib import Path

import click
import pytest
from gdkd_cache_cli.main import main

_ROOT = Path(__file__).parents[1]
_PAGES = sorted(
    path for pattern in ("*.md", "gdkd_cache/**/*.md", "cli/*.md", "scripts/**/*.md") for path in _ROOT.glob(pattern)
)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_BLOCK = re.compile(r"```bash\n(.*?)```", re.S)


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _commands(page: Path) -> list[list[str]]:
    """The words of every `gdkd-cache` line in a page's blocks of shell."""
    blocks = "\n".join(_BLOCK.findall(page.read_text())).replace("\\\n", " ")
    lines = [
        line.split("gdkd-cache ", 1)[1] for line in blocks.splitlines() if re.search(r"(^|no-python )gdkd-cache ", line)
    ]
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(page.read_text()):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


@pytest.mark.parametrize(
    "page", [page for page in _PAGES if _commands(page)], ids=lambda page: str(page.relative_to(_ROOT))
)
def test_commands_and_options_exist(page: Path) -> None:
    assert isinstance(main, click.Group)
    with click.Context(main) as context:
        for name, *words in _commands(page):
            command = main.get_command(context, name)
            assert command is not None, name
            known = {opt for parameter in command.params for opt in (*parameter.opts, *parameter.secondary_opts)}
            unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]
            assert not unknown, f"{name} {unknown}"
