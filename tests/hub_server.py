"""A small Hugging Face Hub on this machine: the end points that huggingface_hub asks for datasets, and a store of large
files at another address, as the Hub has one. It follows the library's own code; the real Hub was not asked."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "Tests5ecretTests5ecret"
_LARGE = 1000  # bytes from which a file goes to the store of large files; 10 MB on the real one
_PAGE = 7  # files a page of a list; 1000 on the real one
Fault = Callable[["_Request"], bool]  # does something to a request; True when it has been answered


@dataclass
class Repo:
    """Attributes: commits: files by path, by hash; branches: hashes by name; large: paths in the other store."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], branch: str = "main", message: str = "a commit") -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {branch} {sorted(files)}".encode()).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        self.messages.append(message)
        return oid

    def find(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


class HubServer:
    """Attributes:
    url: the end point; storage: the address of large files.
    repos: by ORG/NAME. blobs: large files by SHA-256.
    requests: all that came, as "METHOD /path"; with_token: those that brought the token.
    plan: (pattern of a request, fault, how many times).
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.with_token: list[str] = []
        self.plan: list[tuple[str, Fault, int]] = []
        self.lock = threading.Lock()
        self._servers = [
            ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Request,), {"hub": self})) for _ in range(2)
        ]
        self.url, self.storage = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def sent(self, pattern: str) -> list[str]:
        """The requests that match."""
        return [request for request in self.requests if re.search(pattern, request)]

    def arrived(self, request: str, has_token: bool) -> Fault | None:
        with self.lock:
            self.requests.append(request)
            if has_token:
                self.with_token.append(request)
            for i, (pattern, fault, times) in enumerate(self.plan):
                if times and re.search(pattern, request):
                    self.plan[i] = (pattern, fault, times - 1)
                    return fault
        return None


@contextmanager
def hub_server() -> Iterator[HubServer]:
    server = HubServer()
    try:
        yield server
    finally:
        server.close()


class _Request(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        self.route, self.query = parts.path, {k: v[0] for k, v in parse_qs(parts.query).items()}
        said = self.headers.get("Authorization")
        fault = self.hub.arrived(f"{self.command} {self.route}", said is not None)
        if fault is not None and fault(self):
            return None
        if said not in (None, f"Bearer {TOKEN}"):
            return self.refuse(401, None, "Invalid credentials in Authorization header")
        self.is_known = said is not None
        for method, pattern, name in _ROUTES:
            if method == self.command and (found := re.fullmatch(pattern, self.route)):
                return getattr(self, name)(*map(unquote, found.groups()))
        return self.refuse(404, None, "no such end point")

    do_GET = do_POST = do_PUT = _answer

    def send(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def send_json(self, value: Any, **headers: str) -> None:
        self.send(200, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def refuse(self, status: int, code: str | None, message: str = "refused") -> None:
        headers = {"X_Error_Message": message} | ({} if code is None else {"X_Error_Code": code})
        self.send(status, json.dumps({"error": message}).encode(), Content_Type="application/json", **headers)

    def _repo(self, name: str, *, write: bool = False) -> Repo | None:
        """The repository, or None where the request has been refused."""
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self.is_known):
            self.refuse(404 if self.is_known else 401, "RepoNotFound", "Repository not found")
        elif repo.gated and not self.is_known:
            self.refuse(401, "GatedRepo", "Access is restricted")
        elif write and not self.is_known:
            self.refuse(403, None, "no write access")
        else:
            return repo
        return None

    def _files(self, name: str, revision: str) -> tuple[Repo, str, dict[str, bytes]] | None:
        if (repo := self._repo(name)) is None:
            return None
        if (oid := repo.find(revision)) is None:
            self.refuse(404, "RevisionNotFound", "Invalid rev id")
            return None
        return repo, oid, repo.commits[oid]

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if not self.is_known:
            return self.refuse(401, None, "log in")
        if name in self.hub.repos:
            return self.refuse(409, None, "You already created this dataset repo")
        assert asked["type"] == "dataset"
        private = asked.get("visibility") == "private" or asked.get("private") is True
        repo = self.hub.repos[name] = Repo(private=private)
        repo.commit({".gitattributes": b"*.bin filter=lfs\n"}, message="initial commit")
        self.send_json({"url": f"{self.hub.url}/datasets/{name}"})
        return None

    def revision(self, name: str, revision: str) -> None:
        if (found := self._files(name, revision)) is not None:
            self.send_json({"id": name, "sha": found[1]})

    def tree(self, name: str, revision: str, folder: str) -> None:
        if (found := self._files(name, revision)) is None:
            return None
        repo, _, files = found
        start = f"{folder}/" if folder else ""
        paths = sorted(path for path in files if path.startswith(start))
        if folder and not paths:
            return self.refuse(404, "EntryNotFound", "no such folder")
        cursor = int(self.query.get("cursor", 0))
        listed = [{"type": "directory", "path": f"{start}folder", "oid": "0" * 40, "size": 0}] if not cursor else []
        for path in paths[cursor : cursor + _PAGE]:
            data = files[path]
            entry = {"type": "file", "path": path, "size": len(data), "oid": _git_hash(data)}
            if path in repo.large:
                oid = hashlib.sha256(data).hexdigest()
                entry |= {"oid": "1" * 40, "lfs": {"oid": oid, "size": len(data), "pointerSize": 130}}
            listed.append(entry)
        following = cursor + _PAGE
        more = f'<{self.hub.url}{self.route}?recursive=True&cursor={following}>; rel="next"'
        return self.send_json(listed, **({"Link": more} if following < len(paths) else {}))

    def resolve(self, name: str, revision: str, path: str) -> None:
        if (found := self._files(name, revision)) is None:
            return None
        repo, oid, files = found
        if path not in files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        if path in repo.large:
            self.send_response(302)
            self.send_header(
                "Location", f"{self.hub.storage}/blob/{hashlib.sha256(files[path]).hexdigest()}?sig=s1gned"
            )
            self.send_header("X-Repo-Commit", oid)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        return self.send_part(files[path], X_Repo_Commit=oid)

    def blob(self, sha256: str) -> None:
        self.send_part(self.hub.blobs[sha256])

    def send_part(self, data: bytes, **headers: str) -> None:
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if found is None:
            return self.send(200, data, **headers)
        start = int(found[1])
        span = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return self.send(206, data[start:], Content_Range=span, **headers)

    def preupload(self, name: str, revision: str) -> None:
        if (repo := self._repo(name, write=True)) is None:
            return None
        asked = json.loads(self.body)
        ignored = re.escape(asked.get("gitIgnore", "*.json").strip()).replace(r"\*", ".*")
        files, oid = [], repo.find(revision)
        if oid is None:
            return self.refuse(404, "RevisionNotFound", "Invalid rev id")
        for file in asked["files"]:
            large = file["size"] >= _LARGE and not file["path"].endswith((".md", ".json", ".svg"))
            entry = {"path": file["path"], "uploadMode": "lfs" if large else "regular"}
            entry["shouldIgnore"] = re.fullmatch(ignored, file["path"]) is not None
            if (data := repo.commits[oid].get(file["path"])) is not None:
                entry["oid"] = hashlib.sha256(data).hexdigest() if file["path"] in repo.large else _git_hash(data)
            files.append(entry)
        return self.send_json({"files": files})

    def batch(self, name: str) -> None:
        if self._repo(name, write=True) is None:
            return
        objects = []
        for asked in json.loads(self.body)["objects"]:
            found = dict(asked)
            if asked["oid"] not in self.hub.blobs:
                put = {"href": f"{self.hub.storage}/blob/{asked['oid']}?sig=s1gned"}
                verify = {"href": f"{self.hub.url}/verify"}
                found["actions"] = {"upload": put, "verify": verify}
            objects.append(found)
        self.send_json({"transfer": "basic", "objects": objects})

    def put(self, sha256: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != sha256:
            return self.refuse(400, None, "other bytes")
        with self.hub.lock:
            self.hub.blobs[sha256] = self.body
        return self.send(200, b"")

    def verify(self) -> None:
        asked = json.loads(self.body)
        stands = len(self.hub.blobs.get(asked["oid"], b"")) == asked["size"]
        self.send_json({}) if stands else self.refuse(404, None, "not there")

    def validate(self) -> None:
        page = json.loads(self.body)
        good = page["repoType"] == "dataset" and page["content"].startswith("---\n")
        self.send_json({"errors": [], "warnings": []}) if good else self.refuse(400, None, "bad metadata")

    def commit(self, name: str, branch: str) -> None:
        if (repo := self._repo(name, write=True)) is None:
            return None
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        with self.hub.lock:
            if branch not in repo.branches:
                return self.refuse(404, "RevisionNotFound", "Invalid rev id")
            if header.get("parentCommit") not in (None, repo.branches[branch]):
                return self.refuse(412, None, "A commit has happened since")
            files = dict(repo.commits[repo.branches[branch]])
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                    repo.large.discard(value["path"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.hub.blobs[value["oid"]]
                    repo.large.add(value["path"])
                else:
                    assert line["key"] == "deletedFile"
                    del files[value["path"]]
            oid = repo.commit(files, branch, header["summary"])
        return self.send_json(
            {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/datasets/{name}/commit/{oid}"}
        )


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


_NAME = "([^/]+/[^/]+)"
_ROUTES = (
    ("POST", "/api/repos/create", "create"),
    ("GET", f"/api/datasets/{_NAME}/revision/([^/]+)", "revision"),
    ("GET", f"/api/datasets/{_NAME}/tree/([^/]+)/?(.*)", "tree"),
    ("POST", f"/api/datasets/{_NAME}/preupload/([^/]+)", "preupload"),
    ("POST", f"/api/datasets/{_NAME}/commit/([^/]+)", "commit"),
    ("POST", "/api/validate-yaml", "validate"),
    ("POST", rf"/datasets/{_NAME}\.git/info/lfs/objects/batch", "batch"),
    ("POST", "/verify", "verify"),
    ("PUT", "/blob/([0-9a-f]{64})", "put"),
    ("GET", "/blob/([0-9a-f]{64})", "blob"),
    ("GET", f"/datasets/{_NAME}/resolve/([^/]+)/(.+)", "resolve"),
)
