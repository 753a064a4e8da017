"""An HTTP proxy before a real S3 server that fails one chosen request in one chosen way.

Signatures of S3 are made for the host that the client sees, so the proxy passes the original Host header on; the server
accepts it. Requests are numbered from 0 in the order in which they arrive.
"""

import http.client
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import urlsplit

FAULTS = (
    "503",
    "500",
    "reset",
    "lost answer",
    "cut",
    "shortened",
    "flipped",
    "expired",
    "404",
    "hang",
    "drip",
    "kill before",
    "kill after",
)
HANG_S = 4.0
_ERROR = '<?xml version="1.0"?><Error><Code>{code}</Code><Message>injected</Message></Error>'


class Request(NamedTuple):
    """One request as it arrived."""

    number: int
    method: str
    path: str
    query: str
    conditional: bool
    body: bytes  # of a POST: the names of what many-at-once deletes

    @property
    def is_listing(self) -> bool:
        return self.method == "GET" and "list-type" in self.query


class Answer(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes


@dataclass
class Plan:
    """What goes wrong: `fault` at every request that `chosen` says. `kill` ends the process under test."""

    fault: str | None = None
    chosen: Callable[[Request], bool] = lambda request: False
    kill: Callable[[], None] = lambda: None
    seen: list[Request] = field(default_factory=list)
    injected: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self, method: str, target: str, conditional: bool, body: bytes) -> tuple[Request, str | None]:
        parts = urlsplit(target)
        with self.lock:
            request = Request(
                len(self.seen), method, parts.path, parts.query, conditional, body if method == "POST" else b""
            )
            self.seen.append(request)
            hit = self.fault is not None and self.chosen(request)
            self.injected += hit
            return request, self.fault if hit else None


class FaultProxy:
    """A running proxy; set `plan` before the client starts."""

    def __init__(self, endpoint: str) -> None:
        self.upstream = urlsplit(endpoint).netloc
        self.plan = Plan()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def handle_any(self) -> None:
                outer.serve(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self._local = threading.local()

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        request, fault = self.plan.next(handler.command, handler.path, "If-None-Match" in handler.headers, body)
        if fault in ("503", "500"):
            return self._reply(handler, _error(int(fault), "SlowDown" if fault == "503" else "InternalError"))
        if fault == "expired":
            return self._reply(handler, _error(400, "ExpiredToken"))
        if fault == "404":
            return self._reply(handler, _error(404, "NoSuchKey"))
        if fault == "reset":
            return _reset(handler)
        if fault == "hang":
            time.sleep(HANG_S)
            return _reset(handler)
        if fault == "kill before":
            self.plan.kill()
            return _reset(handler)
        answer = self._forward(handler, body)
        if fault == "kill after":
            self.plan.kill()
            return _reset(handler)
        if fault == "lost answer":
            return _reset(handler)
        if fault == "shortened" and answer.body and handler.command == "GET":
            answer = _with_body(answer, answer.body[: len(answer.body) // 2])
        if fault == "flipped" and answer.body and handler.command == "GET" and not request.is_listing:
            middle = len(answer.body) // 2
            flipped = bytes([answer.body[middle] ^ 1])
            answer = _with_body(answer, answer.body[:middle] + flipped + answer.body[middle + 1 :])
        self._reply(handler, answer, cut=fault == "cut", drip=fault == "drip")
        return None

    def _forward(self, handler: BaseHTTPRequestHandler, body: bytes) -> Answer:
        for attempt in range(2):
            connection = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._local.connection = http.client.HTTPConnection(self.upstream, timeout=30)
            try:
                connection.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
                for name, value in handler.headers.items():
                    if name.lower() not in ("connection",):
                        connection.putheader(name, value)
                connection.endheaders(body or None)
                response = connection.getresponse()
                content = response.read()
                headers = [
                    (name, value)
                    for name, value in response.getheaders()
                    if name.lower() not in ("transfer-encoding", "connection", "content-length")
                ]
                length = response.getheader("Content-Length")
                if handler.command == "HEAD" and length:
                    headers.append(("Content-Length", length))
                return Answer(response.status, headers, content)
            except (http.client.HTTPException, OSError):
                connection.close()
                self._local.connection = None
                if attempt:
                    raise
        raise AssertionError

    def _reply(self, handler: BaseHTTPRequestHandler, answer: Answer, *, cut: bool = False, drip: bool = False) -> None:
        try:
            handler.send_response(answer.status)
            for name, value in answer.headers:
                handler.send_header(name, value)
            if handler.command != "HEAD":
                handler.send_header("Content-Length", str(len(answer.body)))
            handler.end_headers()
            if handler.command == "HEAD" or answer.status == 304:
                return
            if cut:
                handler.wfile.write(answer.body[: len(answer.body) // 2])
                handler.wfile.flush()
                _reset(handler)
            elif drip:
                started = time.monotonic()
                for byte in answer.body:
                    handler.wfile.write(bytes([byte]))
                    handler.wfile.flush()
                    if time.monotonic() - started > HANG_S:
                        return _reset(handler)
                    time.sleep(0.2)
            else:
                handler.wfile.write(answer.body)
        except OSError:
            handler.close_connection = True


def _with_body(answer: Answer, body: bytes) -> Answer:
    return answer._replace(body=body)


def _error(status: int, code: str) -> Answer:
    return Answer(status, [("Content-Type", "application/xml")], _ERROR.format(code=code).encode())


def _reset(handler: BaseHTTPRequestHandler) -> None:
    """Break the connection off, as a crashed server does."""
    handler.close_connection = True
    try:
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        handler.connection.close()
    except OSError:
        pass


@contextmanager
def serve(endpoint: str) -> Iterator[FaultProxy]:
    """A proxy before the S3 server at `endpoint`."""
    proxy = FaultProxy(endpoint)
    thread = threading.Thread(target=proxy.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.server.shutdown()
        proxy.server.server_close()


def killer(pid: int) -> Callable[[], None]:
    """SIGKILL for a process of ours."""

    def kill() -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    return kill
