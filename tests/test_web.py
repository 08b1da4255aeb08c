"""Web servers that answer oddly or slowly, and URLs that are broken: one line each, and no wait without a word."""

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from faulty import Handler, odd_server, web_server
from gdkd_cache_cli.main import main
from hypothesis import example, given
from hypothesis import strategies as st

from gdkd_cache import open_cache, progress
from gdkd_cache.errors import GdkdCacheError, StoreError
from gdkd_cache.objects import connection
from gdkd_cache.objects.files import open_files
from gdkd_cache.objects.folder import Folder
from gdkd_cache.objects.objects import open_objects
from gdkd_cache.objects.urls import scheme_of

_PAGE = b"\n<!DOCTYPE html><html><title>Log in</title></html>"


def _run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def _answer(handler: Handler, body: bytes, *, length: int | None = None) -> None:
    handler.send_response(200)
    if length is not None:
        handler.send_header("Content-Length", str(length))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


def _trickle(handler: Handler) -> None:
    _answer(handler, b"", length=1000)
    for _ in range(1000 * (handler.command != "HEAD")):
        handler.wfile.write(b"x")
        time.sleep(0.05)


def _page(handler: Handler) -> None:
    _answer(handler, _PAGE, length=len(_PAGE))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda handler: _answer(handler, b"{}"), "does not say how long the file is (no Content-Length)"),
        (_page, "the server answered with a web page, not with a file; try the URL in a browser"),
        (lambda handler: handler.wfile.write(b"\x1b[2J nonsense\r\n\r\n"), "cannot be reached"),
    ],
    ids=["length", "page", "nonsense"],
)
def test_odd_answers(tmp_path: Path, answer: Callable[[Handler], object], said: str) -> None:
    """Of a cache, of shards, and of the class names beside them."""
    with odd_server(answer) as url:
        for command in (
            ("inspect", f"{url}/x"),
            ("pull", f"{url}/x", tmp_path / "out"),
            ("eval", "--data", f"wds:{url}/x/a.tar", "--weights", "w.pt"),
            (
                "eval",
                "--data",
                f"wds:{url}/x/a.tar",
                "--stream",
                "--local-copy",
                tmp_path / "kept",
                "--weights",
                "w.pt",
            ),
        ):
            result = _run(*command)
            assert result.exit_code == 1
            (line,) = result.stderr.splitlines()
            assert line.startswith(f"Error: {url}/x/")
            assert said in line
    assert not (tmp_path / "out").exists()


def test_a_page_in_place_of_a_shard(tmp_path: Path) -> None:
    """A server that has no such shard, and answers with a page: not a damaged shard."""
    with odd_server(
        lambda handler: _page(handler) if handler.path.endswith(".tar") else handler.send_error(404)
    ) as url:
        for options in ((), ("--local-copy", tmp_path / "kept")):
            line = _run("eval", "--data", f"wds:{url}/a.tar", *options, "--weights", "w.pt").stderr
            assert f"{url}/a.tar: the server answered with a web page" in line


def test_what_is_waited_for_is_told(
    digits_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line every few seconds while bytes trickle, and an end that the environment sets; nothing when all is quick."""
    for name, seconds in (("_PATIENCE", 0.2), ("_PLAIN_INTERVAL", 0.2), ("_TICK", 0.05)):
        monkeypatch.setattr(progress, name, seconds)
    monkeypatch.setattr(connection, "_RETRY", {"max_retries": 0})
    monkeypatch.setenv("HTTP_TIMEOUT", "3s")
    with odd_server(_trickle) as url, pytest.raises(StoreError, match=r"took too long; .* HTTP_TIMEOUT=10m"):
        open_cache(f"{url}/x")
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 16
    assert all(line.startswith(f"waiting for {url}/x/manifest.json: ") for line in lines)
    amounts = [int(line.split(": ")[1].split(" bytes")[0]) for line in lines]
    assert 0 < amounts[0] < amounts[-1] < 3000
    with web_server(digits_cache.parent) as url:
        monkeypatch.setattr(progress, "_PATIENCE", 5.0)
        assert open_cache(f"{url}/{digits_cache.name}").view(0).logits([0]).isfinite().all()
    assert "waiting" not in capsys.readouterr().err
    monkeypatch.setenv("HTTP_TIMEOUT", "soon")
    with pytest.raises(
        StoreError, match=r"one of HTTP_CONNECT_TIMEOUT, HTTP_READ_TIMEOUT, HTTP_TIMEOUT .* no duration"
    ):
        open_cache("http://localhost/x")


def test_a_stalled_answer_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_RETRY", {"max_retries": 0})
    monkeypatch.setenv("HTTP_READ_TIMEOUT", "200ms")
    with odd_server(lambda handler: time.sleep(5)) as url, pytest.raises(StoreError, match="no answer, or it came to"):
        open_cache(f"{url}/x")


_PIECES = [
    *("[::1]", "[::1", "]", "localhost", "127.0.0.1", "bucket", "b_ck", "..", "%00", "%", "\\", "\0", "\n", "\x1b[2J"),
    *("\ud800", "\u202e", "é", "☃", "\u2100", "user:hush@", "@", ":", "::", ":80", ":99999", ":-1", ":abc", "?", "#"),
    *("?sig=hush", "/", "///", "/a/b.tar", "a" * 3000, "{", "}", '"', "<", "*", " ", "[v1.x]", "[fe80::1%eth0]"),
]
_ELSEWHERE, _HERE = ("https://", "s3://", "gs://", "az://"), ("localhost", "127.0.0.1", "[::1]")
_URLS = st.builds(
    "{}://{}".format,
    st.sampled_from(["http", "https", "s3", "gs", "az", "S3", "ftp", "file", "a+b"]),
    st.lists(st.one_of(st.sampled_from(_PIECES), st.text(max_size=3)), max_size=6).map("".join),
)


@given(_URLS)
@example("http://[::1")
@example("https://}/x")  # at which obstore panics
@example("http://℀user:hush@[::1][/x")  # Python's own message quotes it
@example("s3://")
def test_any_url_is_a_place_or_a_line(url: str) -> None:
    """Nothing but our errors, in one line without a password; `http` reaches this machine alone."""
    for opening in (open_objects, lambda url: open_files([url])[0][0]):
        try:
            opened = opening(url)
        except GdkdCacheError as error:
            said = str(error)
            assert "\n" not in said
            assert len(said) < 500
            assert "hush" not in said.partition("://")[2].partition("/")[0]
            assert "sig=" not in said
        else:
            assert opened.location.startswith((*_ELSEWHERE, *(f"http://{host}" for host in _HERE)))


def test_urls_that_are_right() -> None:
    for url in (
        "s3://b_1/a b/é.zarr/",
        "https://exämple.org:8443/x",
        "http://[::1]:80/x",
        "HTTP://localhost",
        "gs://a",
    ):
        location = open_objects(url).location
        assert location == f"{scheme_of(url)}{url[url.index(':') :]}".rstrip("/")
    assert isinstance(open_objects("a/b:c//d"), Folder)


def test_what_is_no_cache(tmp_path: Path, digits_cache: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "c.zarr").mkdir()
    os.mkfifo(tmp_path / "c.zarr/manifest.json")
    (tmp_path / "d.zarr/manifest.json").mkdir(parents=True)
    for place, said in (
        ("fifo", "fifo is no cache: it is a pipe, a socket or a device, not a folder;"),
        ("c.zarr", "c.zarr is no cache: its manifest.json is a pipe, a socket or a device;"),
        ("d.zarr", "d.zarr is no cache: its manifest.json is a folder;"),
        ("e.zarr", "e.zarr is no cache: it has no manifest.json;"),
    ):
        for command in (("inspect",), ("verify",), ("pull", "out")):
            result = _run(command[0], tmp_path / place, *command[1:])
            assert result.exit_code == 1
            assert said in result.stderr


def test_a_full_disk_is_told_with_the_file(tmp_path: Path, digits_cache: Path, images: Path) -> None:
    """Writes that fail halfway do not name their file themselves."""
    shards = f"{images}/Train-{{0..4}}.tar"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with web_server(images) as url:
        for command, said in (
            (("convert", digits_cache, tmp_path / "a", "--data", f"wds:{shards}"), "a/Train-0.logits.tar: File too"),
            (("eval", "--data", f"wds:{url}/Train-0.tar", "--weights", "w"), "Train-0.tar: File too"),
            (("eval", "--data", f"wds:{url}/Train-0.tar", "--local-copy", tmp_path, "--weights", "w"), "r: File too"),
            (("pull", digits_cache, tmp_path / "b"), f"{tmp_path}/b/"),
        ):
            resource.setrlimit(resource.RLIMIT_FSIZE, (900, hard))
            try:
                result = _run(*command)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert result.exit_code == 1
            assert said in result.stderr.splitlines()[-1]
            assert result.stderr.splitlines()[-1].endswith(": File too large")


def test_what_a_copy_says(tmp_path: Path, digits_cache: Path) -> None:
    """One view by its number; how many objects it took, and how many stood."""
    whole = _run("push", digits_cache, tmp_path / "a").stdout
    count = len(open_cache(digits_cache).manifest.objects)
    assert whole.startswith(f"{count} of {count} objects copied (")
    assert "bytes); " in whole
    assert "stood" not in whole
    (tmp_path / "a/zarr.json").unlink()
    assert f"1 of {count} objects copied" in (again := _run("push", digits_cache, tmp_path / "a").stdout)
    assert f"bytes), the other {count - 1} stood there already; " in again
    assert _run("pull", digits_cache, tmp_path / "b", "--views", "0").exit_code == 0
    assert list(open_cache(tmp_path / "b").view_numbers) == [0]
