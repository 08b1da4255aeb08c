"""A small HTTP proxy in front of a real S3 endpoint, which does wrong to some requests on purpose; a web server."""

import http.client
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SECRET = "hush-5ecret"
"""A credential of the tests' environment, which nothing may tell."""

Handler = BaseHTTPRequestHandler
Fault = Callable[["_Request"], bool]  # does something to a request; True when it has been answered


class FaultyProxy:
    """Forwards to `port` on this machine; `plan` holds (pattern of "METHOD /path", fault, how many times).

    Attributes:
        requests: all that came, as "METHOD /path".
        most_at_once: the largest number of requests that were under way together.
        delay: seconds by which every answer is late.
    """

    def __init__(self, port: int) -> None:
        self.plan: list[tuple[str, Fault, int]] = []
        self.requests: list[str] = []
        self.most_at_once, self.delay = 0, 0.0
        self._at_once, self._lock, self._upstream = 0, threading.Lock(), port
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Request,), {"proxy": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def sent(self, pattern: str) -> list[str]:
        """The requests that match."""
        return [request for request in self.requests if re.search(pattern, request)]

    def arrived(self, request: str) -> Fault | None:
        """Count a request and take its fault from the plan."""
        with self._lock:
            self.requests.append(request)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            for i, (pattern, fault, times) in enumerate(self.plan):
                if times and re.search(pattern, request):
                    self.plan[i] = (pattern, fault, times - 1)
                    return fault
        return None

    def left(self) -> None:
        with self._lock:
            self._at_once -= 1

    def forward(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self._upstream)
        connection.request(method, path, body, headers)
        return connection.getresponse()


class _Request(Handler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each body waits 40 ms for the client's acknowledgement of its head
    proxy: FaultyProxy
    body: bytes

    def _serve(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.proxy.arrived(f"{self.command} {self.path}")
        try:
            time.sleep(self.proxy.delay)
            if fault is None or not fault(self):
                self.answer(*self.forward())
        except (BrokenPipeError, ConnectionResetError):  # the client was killed
            self.close_connection = True
        finally:
            self.proxy.left()

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve

    def forward(self) -> tuple[int, dict[str, str], bytes]:
        response = self.proxy.forward(self.command, self.path, self.body, dict(self.headers))
        with response:
            return response.status, dict(response.headers), response.read()

    def answer(self, status: int, headers: dict[str, str], body: bytes, *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("connection", "date", "server", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = self.close_connection or cut

    def log_message(self, format: str, *args: object) -> None:
        pass


def refuse(status: int, code: str) -> Fault:
    """Answer with an error of S3."""

    def fault(request: _Request) -> bool:
        request.answer(status, {}, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())
        return True

    return fault


def drop(request: _Request) -> bool:
    """Close the connection without an answer."""
    request.close_connection = True
    return True


def lose(request: _Request) -> bool:
    """Carry the request out, and answer that it failed."""
    request.forward()
    return refuse(500, "InternalError")(request)


def cut(request: _Request) -> bool:
    """Break the connection in the middle of the answer."""
    request.answer(*request.forward(), cut=True)
    return True


def flip(request: _Request) -> bool:
    """Flip a bit of what is sent."""
    request.body = request.body[:-1] + bytes([request.body[-1] ^ 1])
    return False


def opaque_etag(request: _Request) -> bool:
    """Answer with an ETag that is no checksum."""
    status, headers, body = request.forward()
    request.answer(status, {name: value for name, value in headers.items() if name != "ETag"} | {"ETag": '"0x8"'}, body)
    return True


def hold(release: threading.Event) -> Fault:
    """Carry nothing out before the event."""

    def fault(request: _Request) -> bool:
        return release.wait(30) and drop(request)

    return fault


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has read enough breaks the connection."""


@contextmanager
def web_server(folder: Path) -> Iterator[str]:
    """The URL of a plain web server for a folder."""
    with _serving(partial(SimpleHTTPRequestHandler, directory=str(folder))) as url:
        yield url


@contextmanager
def odd_server(answer: Callable[[Handler], object]) -> Iterator[str]:
    """The URL of a server that answers every HEAD and GET as it likes, on a connection that then ends."""

    class Odd(Handler):
        def do_GET(self) -> None:
            with suppress(OSError):  # the client has gone
                answer(self)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with _serving(Odd) as url:
        yield url


@contextmanager
def _serving(handler: Callable[..., Handler]) -> Iterator[str]:
    with _QuietServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
