"""Caches in dataset repositories, with huggingface_hub itself, against a small Hub on this machine.

Its large files go the way of LFS here (HF_HUB_DISABLE_XET): of the Hub's newer store there is no server to be had.
"""

import hashlib
import logging
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from gdkd_cache_cli.main import main
from hub_server import TOKEN, HubServer, Repo, hub_server
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from small import build_small, fork, linear_student

import gdkd_cache as gc
from gdkd_cache import open_cache
from gdkd_cache.data.source import ArraySource
from gdkd_cache.errors import CacheError, MismatchError, StoreError, UsageError
from gdkd_cache.models.network import Network
from gdkd_cache.objects import hub_branch, hub_library
from gdkd_cache.objects.hub_place import HubPlace
from gdkd_cache.objects.objects import open_objects, open_writable
from gdkd_cache.sharing.copy import copy
from gdkd_cache.store.manifest import BUILD_NAME, MANIFEST_NAME

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # what huggingface_hub itself should
_URL = "hf://datasets/ada/logits"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub with an empty repository, and the environment that leads there."""
    with hub_server() as server:
        server.repos["ada/logits"] = Repo()
        server.repos["ada/logits"].commit({".gitattributes": b"x"})
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
        yield server
        close_session()


@pytest.fixture
def repo(hub: HubServer) -> Repo:
    return hub.repos["ada/logits"]


def _run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def _fails(status: int, **headers: str) -> Any:
    return lambda request: bool(request.send(status, b"", **headers)) or True


def test_push_open_pull(
    hub: HubServer,
    repo: Repo,
    tmp_path: Path,
    digits_cache: Path,
    digits: ArraySource,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One commit brings it all; what is read is of that commit, said once, and trains a student."""
    whole = open_cache(digits_cache)
    result = copy(digits_cache, _URL)
    assert repo.messages == ["a commit", f"The cache {whole.digest}"]
    assert (result.num_sent, result.manifest.digest) == (len(whole.manifest.objects), whole.digest)
    assert result.location == f"{_URL}@{repo.branches['main']}"
    assert set(repo.commits[repo.branches["main"]]) == {*whole.manifest.objects, MANIFEST_NAME, ".gitattributes"}
    assert repo.large
    assert {path.partition(" ")[0] for path in hub.sent("/blob/")} == {"PUT"}

    caplog.set_level(logging.INFO)
    kept = tmp_path / "kept"
    cache = open_cache(_URL, local_copy=kept)
    assert cache.path == result.location
    said = [record.message for record in caplog.records if record.name == "gdkd_cache.objects.hub"]
    assert said == [f"{_URL} is read as it is now: {cache.path}, which names it for good"]
    trained = cache.dataset(digits)
    for images, labels, teacher in trained.loader(0, batch_size=64):
        loss = gc.losses.kd(linear_student(10)(images), teacher.logits, temperature=4)
        assert loss.isfinite()
        assert len(labels) == 64
    assert open_cache(result.location, digest=whole.digest, local_copy=kept).view(0).logits([0]).shape == (1, 10)
    assert not [problem for _, problem in cache.problems() if problem]

    before = len(hub.requests)
    again = copy(digits_cache, _URL)
    assert (again.num_sent, again.num_bytes, again.location) == (0, 0, result.location)
    assert not [request for request in hub.requests[before:] if not request.startswith("GET")]

    assert copy(_URL, tmp_path / "pulled").manifest == whole.manifest
    assert open_cache(tmp_path / "pulled").digest == whole.digest
    assert not set(hub.with_token) & set(hub.sent("/blob/"))  # the store is at another address, and gets no token
    assert hub.sent("GET /blob/")


def test_a_commit_stays_what_it_is(
    hub: HubServer, repo: Repo, tmp_path: Path, digits: ArraySource, digits_cache: Path, teacher: Network
) -> None:
    """An open cache, and a URL with its commit, give the same bytes when others replace the cache on the branch."""
    first = copy(digits_cache, _URL)
    opened, digest = open_cache(_URL), first.manifest.digest
    build_small(tmp_path / "other", digits, teacher, seed=1)
    with pytest.raises(MismatchError, match=r"holds another cache, sha256:\w+, not .*--replace: its commits stay"):
        copy(tmp_path / "other", _URL)
    second = copy(tmp_path / "other", _URL, replace=True)
    assert len(repo.commits) == 3
    assert set(open_objects(_URL).sizes()) == {*second.manifest.objects, MANIFEST_NAME}
    assert open_cache(_URL).digest == open_cache(tmp_path / "other").digest
    assert opened.view(1).logits([3]).shape == (1, 10)
    assert open_cache(first.location).digest == opened.digest == digest
    repo.branches["v1"] = first.location.rpartition("@")[2]
    assert open_cache(f"{_URL}@v1").path == first.location


def test_folders_and_branches(hub: HubServer, repo: Repo, digits_cache: Path) -> None:
    """Several caches in one repository; and a branch, whose name has a slash."""
    one = copy(digits_cache, f"{_URL}/a/one").manifest
    two = copy(digits_cache, f"{_URL}/a/two@main", views=range(1)).manifest
    assert open_cache(f"{_URL}/a/one").digest == open_cache(f"{_URL}@main/a/one").digest == one.digest
    assert open_cache(f"{_URL}/a/two").digest == two.digest != one.digest
    assert set(open_objects(f"{_URL}/a/two").sizes()) == {*two.objects, MANIFEST_NAME}
    assert open_objects(f"{_URL}/a/two").sizes("nothing") == {}
    with pytest.raises(CacheError, match=r"is not empty \('a/one/.*'\) and holds no cache"):
        copy(digits_cache, _URL)
    repo.branches["next/big"] = next(iter(repo.commits))
    assert copy(digits_cache, f"{_URL}@next%2Fbig").location.startswith(_URL)
    assert open_cache(f"{_URL}@next%2Fbig").digest == one.digest


def test_an_interrupted_push_goes_on(
    hub: HubServer, repo: Repo, digits_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody sees a part of it, and what had arrived is not sent again."""
    monkeypatch.setattr("gdkd_cache.sharing.commit._MOST_TOGETHER", 4)
    hub.plan = [("PUT /blob", lambda request: False, 3), ("PUT /blob", _fails(400), 99)]
    with pytest.raises(StoreError, match=r"the Hub refused \(400\)"):
        copy(digits_cache, _URL)
    with pytest.raises(CacheError, match=f"it has no {MANIFEST_NAME}"):
        open_cache(_URL)
    arrived = set(hub.blobs)
    assert len(arrived) == 3
    hub.plan, hub.requests = [], []
    copy(digits_cache, _URL)
    again = {request.rpartition("/")[2] for request in hub.sent("PUT /blob")}
    assert again
    assert not again & arrived
    assert len(repo.commits) == 2
    assert open_cache(_URL).digest == open_cache(digits_cache).digest


def test_several_commits(
    hub: HubServer, repo: Repo, digits_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a cache that is too large for one, the first says whose it is, the last brings the manifest."""
    monkeypatch.setattr(hub_branch, "_MOST_FILES", 5)
    monkeypatch.setattr("gdkd_cache.sharing.commit._MOST_TOGETHER", 5)
    hub.plan = [("/commit/", lambda request: False, 2), ("/commit/", _fails(500), 99)]
    with pytest.raises(StoreError, match=r"the Hub failed \(500\)"):
        copy(digits_cache, _URL)
    with pytest.raises(CacheError, match="is an unfinished build or copy"):
        open_cache(_URL)
    with pytest.raises(MismatchError, match="holds another unfinished copy"):
        copy(digits_cache, _URL, views=range(1))
    hub.plan = []
    result = copy(digits_cache, _URL)
    assert result.num_sent == len(result.manifest.objects) - 10
    commits = list(repo.commits.values())[1:]
    assert len(commits) > 2
    assert [BUILD_NAME in files for files in commits] == [True] * (len(commits) - 1) + [False]
    assert [MANIFEST_NAME in files for files in commits] == [False] * (len(commits) - 1) + [True]
    assert set(repo.messages[1:-1]) == {f"A part of the cache {result.manifest.digest}"}
    assert copy(_URL, tmp_path / "pulled").manifest.digest == result.manifest.digest
    part = copy(digits_cache, _URL, views=range(1), replace=True)
    assert set(open_objects(_URL).sizes()) == {*part.manifest.objects, MANIFEST_NAME}
    assert not [name for name, problem in open_cache(_URL).problems() if problem]


def test_a_killed_push_goes_on(hub: HubServer, digits_cache: Path) -> None:
    """In a process that dies while it sends."""
    over = threading.Event()
    hub.plan = [("PUT /blob", lambda request: False, 2), ("PUT /blob", lambda request: not over.wait(60), 99)]
    process = fork(lambda: copy(digits_cache, _URL))
    deadline = time.monotonic() + 60
    while len(hub.sent("PUT /blob")) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.join()
    arrived = set(hub.blobs)
    assert len(arrived) == 2
    hub.plan, hub.requests = [], []
    over.set()
    copy(digits_cache, _URL)
    assert not {request.rpartition("/")[2] for request in hub.sent("PUT /blob")} & arrived
    assert open_cache(_URL).digest == open_cache(digits_cache).digest


def test_broken_connections_are_taken_up(hub: HubServer, repo: Repo, digits_cache: Path) -> None:
    """Where they broke: the rest of an object is asked for, and a server that throttles is asked again."""
    copy(digits_cache, _URL)
    data = digits_cache.joinpath(
        name := max(repo.large, key=lambda path: len(repo.commits[repo.branches["main"]][path]))
    )

    def breaks(request: Any) -> bool:
        request.send_response(200)
        request.send_header("Content-Length", str(data.stat().st_size))
        request.end_headers()
        request.wfile.write(data.read_bytes()[:700])
        request.close_connection = True
        return True

    hub.plan = [("GET /blob", breaks, 1), ("/resolve/", _fails(429, ratelimit='"resolvers";r=0;t=1'), 1)]
    objects = open_objects(_URL)
    hub.requests = []
    assert objects.read(name, 10**6) == data.read_bytes()
    assert len(hub.sent("GET /blob")) == 2
    assert objects.read(name, 99) == data.read_bytes()[:100]
    hub.plan = [("GET /blob", breaks, 99)]
    with pytest.raises(StoreError, match="connection broke again and again"):
        objects.read(name, 10**6)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (("revision", _fails(401, X_Error_Code="RepoNotFound")), "there is no such dataset repository, or not for you"),
        (("revision", _fails(403, X_Error_Code="GatedRepo")), "its owner grants access: ask for it"),
        (("revision", _fails(404, X_Error_Code="RevisionNotFound")), "it has no such revision; name a branch"),
        (("revision", _fails(403, X_Error_Message="Access to this resource is disabled.")), "has disabled"),
        (("revision", _fails(429)), r"too many requests \(429\), and it stayed so"),
        (("revision", _fails(503)), r"the Hub failed \(503\), and went on failing"),
        (("revision", lambda request: bool(request.send_json({"sha": 3})) or True), "the Hub names no commit of it"),
        (("revision", lambda request: bool(request.send(200, b"<html>")) or True), "answered cannot be understood"),
        (("resolve", _fails(401)), r"the token is not valid \(401\)"),
        (("resolve", _fails(418)), r"the Hub refused \(418\)"),
    ],
)
def test_refusals_of_the_hub(hub: HubServer, plan: tuple[str, Any], said: str) -> None:
    """Each is a line of ours, which holds no token and no signed URL."""
    hub.plan = [(*plan, 99)]
    with pytest.raises(StoreError, match=f"^{_URL}.*{said}") as caught:
        open_cache(_URL)
    assert TOKEN not in str(caught.value)
    assert "?" not in str(caught.value)
    result = _run("inspect", _URL)
    assert result.exit_code == 1
    assert TOKEN not in result.output


def test_who_may(hub: HubServer, digits_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a repository there is a line, and an option that makes a private one; and without a token, no writing."""
    url = "hf://datasets/ada/new"
    result = _run("push", digits_cache, url)
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert "make it with --create (only you will see it)" in result.stderr
    result = _run("push", digits_cache, url, "--create")
    assert result.exit_code == 0, result.stderr
    assert f"{url}@{hub.repos['ada/new'].branches['main']} is complete: sha256:" in result.stdout
    assert hub.repos["ada/new"].private
    assert "(--create, --replace) are for hf:// alone" in _run("push", digits_cache, digits_cache, "--create").stderr
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(StoreError, match="or not for you; check its name"):
        open_cache(url)
    with pytest.raises(StoreError, match=r"permission denied \(403\)"):
        copy(digits_cache, _URL)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StoreError, match="HF_HUB_OFFLINE is set"):
        open_cache(_URL)


def test_somebody_else_commits(hub: HubServer, repo: Repo, digits_cache: Path) -> None:
    def other(request: Any) -> bool:
        repo.commit({"x": b"y"})
        return False

    hub.plan = [("/preupload/", other, 1)]
    with pytest.raises(StoreError, match="somebody else changed it meanwhile"):
        copy(digits_cache, _URL)


def test_what_is_damaged_is_sent_again(hub: HubServer, repo: Repo, digits_cache: Path) -> None:
    result = copy(digits_cache, _URL)
    files = dict(repo.commits[repo.branches["main"]])
    small = next(name for name in files if name.endswith("zarr.json"))
    large = next(iter(repo.large))
    files[small], files[large] = b"{}", bytes(len(files[large]))
    repo.commit(files)
    hub.blobs[hashlib.sha256(files[large]).hexdigest()] = files[large]
    damaged = {name for name, problem in open_cache(_URL).problems() if problem}
    assert damaged == {small, large}
    mended = copy(digits_cache, _URL)
    assert mended.num_sent == 2
    assert mended.location != result.location


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "/etc/passwd", "a/../../passwd", "classes/c/0/0/0/passwd", "\u202epasswd"]
)
def test_hostile_lists(hub: HubServer, repo: Repo, digits_cache: Path, path: str) -> None:
    """What a repository lists beside a cache is told of, unless it is hidden, and never read."""
    copy(digits_cache, _URL)
    repo.commit(repo.commits[repo.branches["main"]] | {path: b"x"})
    result = _run("verify", _URL)
    assert result.exit_code == (0 if ".." in path else 1)
    assert ("is not listed in the manifest; remove it" in result.output) == (result.exit_code == 1)
    assert not hub.sent("passwd")
    assert "\u202e" not in result.output


def test_hostile_answers(hub: HubServer, repo: Repo, digits_cache: Path) -> None:
    """An object that never ends is read as far as it should go; a compressed one is not unpacked."""
    copy(digits_cache, _URL)
    cache = open_cache(_URL)
    sent = 0

    def endless(request: Any) -> bool:
        nonlocal sent
        request.send_response(200)
        request.send_header("Content-Encoding", "gzip")
        request.end_headers()
        try:
            while sent < 10**9:
                sent += request.wfile.write(bytes(2**16))
        except OSError:
            pass
        request.close_connection = True
        return True

    hub.plan = [("/resolve/", endless, 99)]
    with pytest.raises(CacheError, match="more or fewer bytes than the manifest's"):
        cache.read("zarr.json")
    assert sent < 10**8
    hub.plan = [("/tree/", lambda request: bool(request.send_json([{"type": "file"}])) or True, 1)]
    with pytest.raises(StoreError, match="answered cannot be understood"):
        open_objects(_URL).sizes()
    entry = {"type": "file", "path": "elsewhere/x", "size": 1, "oid": "0"}
    hub.plan = [("/tree/", lambda request: bool(request.send_json([entry])) or True, 1)]
    with pytest.raises(StoreError, match="lists what is no cache's, such as 'elsewhere/x'"):
        open_objects(f"{_URL}/folder").sizes()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"hf://{TOKEN}@datasets/ada/logits", "give the URL without user"),
        (f"{_URL}@{TOKEN}", "a token stands in it"),
        (f"{_URL}?token={TOKEN}", "without user, \\? and #"),
        ("hf://datasets/ada", "give hf://datasets/ORG/NAME"),
        ("hf://models/ada/logits", "give hf://datasets/ORG/NAME"),
        ("hf://ada/logits", "give hf://datasets/ORG/NAME"),
        (f"{_URL}@v1/x@v2", "give hf://datasets/ORG/NAME"),
        (f"{_URL}/../../x", "give hf://datasets/ORG/NAME"),
        (f"{_URL}/.git", "give hf://datasets/ORG/NAME"),
        ("hf://datasets/ada/a..b", "which none on the Hub has"),
    ],
)
def test_urls_that_are_refused(url: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        open_objects(url)
    assert TOKEN not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "repository", "revision", "folder"),
    [
        (_URL, "ada/logits", None, ""),
        (f"{_URL}@refs/pr/3", "ada/logits", "refs/pr/3", ""),
        (f"{_URL}@v1.0/sub/folder", "ada/logits", "v1.0", "sub/folder"),
        (f"{_URL}@a%2Fb", "ada/logits", "a/b", ""),
        (f"{_URL}@{'0' * 40}/x", "ada/logits", "0" * 40, "x"),
    ],
)
def test_urls(url: str, repository: str, revision: str | None, folder: str) -> None:
    place = HubPlace.parse(url)
    assert place == HubPlace(repository=repository, revision=revision, folder=folder)
    assert str(place) == url
    assert place.is_pinned == (revision == "0" * 40)


def test_what_the_hub_is_not_for(hub: HubServer, digits_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is built there object by object, a commit is not changed; and without the library there is a line."""
    for url in (_URL, f"{_URL}@v1"):
        with pytest.raises(UsageError, match=rf"^{url}: hf:// is written in commits; write to a folder, then"):
            open_writable(url)
    with pytest.raises(UsageError, match="is a commit, which nothing can change"):
        copy(digits_cache, f"{_URL}@{'0' * 40}")
    assert not hub.requests
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for name in ("hub", "hub_library"):
        monkeypatch.delitem(sys.modules, f"gdkd_cache.objects.{name}")
    result = _run("inspect", _URL)
    assert result.exit_code == 2
    assert result.stderr.strip().endswith("pip install 'gdkd-cache[hub]'")
    assert len(result.stderr.splitlines()) == 1


def test_no_signed_url_in_logs(caplog: pytest.LogCaptureFixture) -> None:
    """What the library says of requests that it repeats is said without their queries."""
    logging.getLogger("huggingface_hub.utils._http").warning("thrown while requesting PUT %s", "https://s/x?sig=s1gned")
    assert hub_library.KIND == "dataset"
    assert "s1gned" not in caplog.text
