"""`gdkd-cache report`: of any cache a page, or one line that says why not; the browser looks at what was made."""

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, find_browser
from click.testing import CliRunner, Result
from gdkd_cache_cli.main import main
from hostile_names import HOSTILE_NAMES
from reported import hostile_cache, run_folder

from gdkd_cache import open_cache
from gdkd_cache.building.pack import pack
from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import CacheError, MismatchError, NotServedError, UsageError
from gdkd_cache.report.options import ReportOptions
from gdkd_cache.report.report import Report, report
from gdkd_cache.store.cells import Cells
from gdkd_cache.texts import shown

_FAULTS = (Path(__file__).parent / "report_page.js").read_text()


def _run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, digits_cache: Path) -> tuple[Path, ...]:
    folder, digest = tmp_path_factory.mktemp("runs"), open_cache(digits_cache).manifest.digest
    return (
        run_folder(folder / "gdkd-0", [0.2, 0.5, 0.7], digest=digest),
        run_folder(folder / "gdkd-1", [0.3, 0.5, 0.8], digest=digest, seed=1),
        run_folder(folder / "ce", [0.1, 0.3, 0.4], loss="ce"),
    )


@pytest.fixture(scope="module")
def made(digits_cache: Path, digits: ArraySource, runs: tuple[Path, ...]) -> Report:
    """The report of a small cache with all that one can have."""
    return report(ReportOptions(runs=runs), open_cache(digits_cache), source=digits)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, digits: ArraySource) -> Report:
    """The same of one whose classes, keys and trainings have hostile names."""
    folder = tmp_path_factory.mktemp("hostile")
    cache, source = hostile_cache(folder, digits)
    runs = tuple(
        run_folder(folder / str(number), [0.5, 0.6], loss=name[:1000], student=name[:1000], note=name[:1000])
        for number, name in enumerate(HOSTILE_NAMES[:6])
    )
    return report(ReportOptions(runs=runs), open_cache(cache), source=source)


def test_sections_and_numbers(made: Report, digits_cache: Path) -> None:
    html, manifest = made.html.decode(), open_cache(digits_cache).manifest
    places = [html.index(f'<section id="{name}"') for name in ("card", "fidelity", "teacher", "paper", "runs")]
    assert places == sorted(places)
    assert manifest.digest in html
    per_view = manifest.num_bytes / (2 * 256)
    assert f"<dd>{per_view:,.1f}</dd>" in html
    assert manifest.identity.examination is not None
    assert f"<dd>{manifest.identity.examination.views.top1:.1%}</dd>" in html
    assert f"gdkd-cache verify {digits_cache.name} --digest {manifest.digest}" in html
    assert str(digits_cache.parent) not in html  # a page for others does not tell where it was made
    assert len(made.html) < 3 * 10**6
    files = made.files()
    results = files["runs-results.csv"].decode().split("\n")
    assert len(results) == 4  # a heading, two groups, an end
    assert results[1].startswith("1 gdkd,cnn-s,")
    assert ",this one,3,0.75,0.0707" in results[1]
    assert ",0.4,," in results[2]
    for name in ("error-by-loss", "bytes-and-error", "bytes-by-column", "runs-accuracy"):
        assert {f"{name}.svg", f"{name}.csv"} <= set(files)


def test_the_command(tmp_path: Path, digits_cache: Path, runs: tuple[Path, ...]) -> None:
    out, figures = tmp_path / "report.html", tmp_path / "figures"
    out.write_text("another")
    done = _run("report", digits_cache, "--run", runs[0], "--out", out, "--figures", figures)
    assert done.exit_code == 0, done.output
    assert out.read_bytes().startswith(b"<!doctype html>")
    assert f"{out}: {out.stat().st_size:,} bytes" in done.stdout
    names = {path.name for path in figures.iterdir()}
    assert {"runs-accuracy.svg", "error-by-class.csv"} <= names
    assert not any(name.endswith(".partial") for name in names | {path.name for path in tmp_path.iterdir()})


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--out", "{tmp}/report.pdf"], "it must end in .html"),
        (["--out", "{tmp}/no/report.html"], "is no folder; make it, or name another --out"),
        (["--out", "{tmp}/report.html", "--figures", "{tmp}/no/figures"], "is no folder; make it, or name another"),
        (["--out", "{tmp}/report.html", "--run", "{tmp}/none"], "none does not exist"),
        (["--out", "{tmp}/report.html", "--run", "{run}", "--run", "{run}"], "is given twice"),
        (["--out", "{tmp}/report.html", "--class", "zebra"], "zebra"),
        (["--out", "{tmp}/report.html", "--temperature", "0"], "temperature is 0"),
        (["--out", "{tmp}/report.html", "--recipe", "crop-flip"], "--recipe goes with --data"),
        (["--out", "{tmp}/report.html", "--digest", "sha256:00"], "not the sha256:00 asked for"),
        (["--out", "{tmp}/report.html", "--data", "digits", "--subset", "4000"], "4000"),
    ],
)
def test_refusals(tmp_path: Path, digits_cache: Path, runs: tuple[Path, ...], args: list[str], said: str) -> None:
    """In one line, and nothing is written."""
    done = _run("report", digits_cache, *(arg.format(tmp=tmp_path, run=runs[0]) for arg in args))
    assert done.exit_code in (1, 2)
    assert said in done.stderr
    assert len(done.stderr.strip().split("\n")) <= 4  # click shows how a command is used
    assert list(tmp_path.iterdir()) == []


def test_without_its_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, digits_cache: Path) -> None:
    find = importlib.util.find_spec

    def lacking(name: str, package: str | None = None) -> Any:
        return None if name in ("matplotlib", "jinja2") else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", lacking)
    done = _run("report", digits_cache, "--out", tmp_path / "report.html")
    assert done.exit_code == 2
    assert done.stderr.strip() == (
        "Error: a report needs jinja2 and matplotlib, which are not installed: pip install 'gdkd-cache[report]'"
    )


def test_packed_logits(tmp_path: Path, digits: ArraySource) -> None:
    """They have no recipe, and nobody examined a teacher: a page all the same, without images."""
    logits = np.random.default_rng(0).normal(size=(1, 256, 10)).astype("f4")
    pack(tmp_path / "p.zarr", logits, keys=digits.keys, labels=digits.labels, codec="topk:k=4")
    cache = open_cache(tmp_path / "p.zarr")
    html = report(ReportOptions(), cache).html.decode()
    assert "gdkd-cache train" not in html
    assert "<img" not in html
    assert '<section id="runs"' not in html
    assert '<section id="teacher"' in html
    with pytest.raises(CacheError, match="names no recipe"):
        report(ReportOptions(), cache, source=digits)


def test_what_cannot_be_reported(digits: ArraySource, digits_cache: Path) -> None:
    cache = open_cache(digits_cache)
    cache.manifest = replace(cache.manifest, identity=replace(cache.manifest.identity, cells=Cells(height=2, width=3)))
    with pytest.raises(NotServedError, match="holds 2x3 distributions for each image"):
        report(ReportOptions(), cache)
    other = replace(digits, keys=[f"other/{key}" for key in digits.keys])
    with pytest.raises(MismatchError, match="is not in"):
        report(ReportOptions(), open_cache(digits_cache), source=other)


@pytest.mark.parametrize("fields", [{"runs": (Path("a"),) * 65}, {"classes": ("a",) * 13}, {"temperature": 0.0}])
def test_options_are_validated(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"runs|classes|temperature"):
        ReportOptions(**fields)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("there is no Chromium here; scripts/browser installs it where it may")
    opened = Browser(program, tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()


_BAD = """<!doctype html><title>bad</title><style>
#faint { color: #999 } #wide { width: 3000px } #cut { width: 3em; overflow: hidden; white-space: nowrap }
#over { margin-top: -2em }</style>
<p id="faint">faint</p><p id="wide">wide</p><p id="cut">this text is cut</p><p>below</p><p id="over">above</p>
<p style="color: red">a style</p><img src="missing.png"><b id="cut">again</b>
<svg width="90" height="20"><text y="15" fill="#888">drawn</text></svg>"""


def test_a_bad_page_is_found_out(tmp_path: Path, browser: Browser) -> None:
    """What looks at pages sees each fault that it is for."""
    (tmp_path / "bad.html").write_text(_BAD)
    browser.open((tmp_path / "bad.html").as_uri(), width=390)
    assert len(browser.requested) == 2
    assert browser.problems
    faults = "\n".join(browser.value(_FAULTS))
    for fault in (
        "the page is 30", 'p "faint" has a contrast of 2.85', 'p "this text is cut" is cut', "overlap", "is not shown",
        "has no description", "two things are named cut", 'text "drawn" has a contrast of 3.54',
    ):  # fmt: skip
        assert fault in faults, (fault, faults)


def test_in_a_browser(tmp_path: Path, browser: Browser, made: Report, hostile: Report) -> None:
    """Wide and narrow, light and dark: no error, no request, no text cut, overlapping or faint, no page too wide."""
    for name, one in (("made", made), ("hostile", hostile)):
        (tmp_path / f"{name}.html").write_bytes(one.html)
        url = (tmp_path / f"{name}.html").as_uri()
        for width in (1400, 390):
            for scheme in ("light", "dark"):
                browser.open(url, width=width, scheme=scheme)
                assert (browser.problems, browser.requested) == ([], [url])
                assert browser.value(_FAULTS) == [], (name, width, scheme)
                ground = browser.value("getComputedStyle(document.body).backgroundColor")
                assert (ground == "rgb(22, 23, 26)") == (scheme == "dark")
    # Nothing of a hostile name ran or became an element, and each stands there as text.
    assert browser.value("window.hacked") is None
    assert browser.value("document.querySelectorAll('script, b, iframe, object, embed, link').length") == 1
    assert browser.value("Array.from(document.images).every((image) => image.src.startsWith('data:image/png'))")
    assert not browser.value("Array.from(document.querySelectorAll('*')).some((one) => one.hasAttribute('onerror'))")
    texts = set(browser.value("Array.from(document.querySelectorAll('td'), (cell) => cell.textContent)"))
    for name in HOSTILE_NAMES:
        assert shown(shown(name, 80), 120) in texts, name[:60]


def test_tables_keyboard_and_paper(tmp_path: Path, browser: Browser, made: Report) -> None:
    """Tables sort by mouse and by keyboard alone, and say so to those who cannot see it; paper needs neither."""
    (tmp_path / "made.html").write_bytes(made.html)
    browser.open((tmp_path / "made.html").as_uri(), width=1400)
    browser.value("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    found = "Array.from(document.querySelectorAll('table')).find((one) => one.parentElement.ariaLabel === 'By class')"
    browser.value(f"{found}.id = 'classes'")
    column = (
        "Array.from(document.querySelectorAll('#classes tbody td:nth-child(3)'), (cell) => Number(cell.dataset.number))"
    )
    before = browser.value(column)
    browser.click("#classes th:nth-child(3) button")
    assert browser.value(column) == sorted(before, reverse=True)
    assert browser.value("document.querySelector('#classes th:nth-child(3)').ariaSort") == "descending"
    assert browser.value("document.querySelector('#classes th:nth-child(1)').ariaSort") == "none"
    browser.value("document.querySelector('#classes th:nth-child(2) button').focus()")
    browser.press("Tab")
    browser.press("Enter")
    assert browser.value(column) == sorted(before)
    assert browser.value("document.querySelector('#classes th:nth-child(3)').ariaSort") == "ascending"
    browser.press(" ")
    assert browser.value(column) == sorted(before, reverse=True)
    assert browser.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    names = "Array.from(document.querySelectorAll('#classes tbody td:first-child'), (cell) => cell.textContent)"
    browser.click("#classes th:first-child button")
    assert browser.value(names) == sorted(browser.value(names))
    browser.value(
        "(() => { const input = document.querySelector('.filter input'); input.value = 'no row has this'; "
        "input.dispatchEvent(new Event('input')); })()"
    )
    assert browser.value("document.querySelector('.filter output').textContent").startswith("0 of ")
    assert browser.problems == []
    # The first Tab leads past the contents; printed, nothing scrolls, and ink is black.
    url = (tmp_path / "made.html").as_uri()
    browser.open(url, width=1400)
    browser.press("Tab")
    assert browser.value("document.activeElement.getAttribute('href')") == "#main"
    assert browser.value("document.activeElement.getBoundingClientRect().left") >= 0
    browser.press("Enter")
    assert browser.value("location.hash") == "#main"
    browser.open(url, width=700, scheme="dark", media="print")
    assert browser.value("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert browser.value("getComputedStyle(document.querySelector('.scroll')).maxHeight") == "none"
    assert browser.value("getComputedStyle(document.querySelector('nav')).display") == "none"
