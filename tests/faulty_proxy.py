"""A proxy in front of an object store that does what networks and busy stores do, to requests chosen by a seed."""

from __future__ import annotations

import http.client
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self

Fault = Literal[
    "500",
    "503",
    "403",
    "drop before",  # in the middle of what is sent: the store never sees it
    "drop after",  # in the middle of the answer: the store has done it
    "silence",  # for good: somebody has to lose patience
]
ERRORS: dict[Fault, tuple[int, str]] = {
    "500": (500, "InternalError"),
    "503": (503, "SlowDown"),
    "403": (403, "InvalidAccessKeyId"),
}


def some(seed: int, share: float, faults: Sequence[Fault]) -> Callable[[], Fault | None]:
    """A fault for that share of the requests."""
    draws = random.Random(seed)  # noqa: S311
    return lambda: draws.choice(faults) if draws.random() < share else None


class FaultyProxy:
    """`host:port` of it, for the length of the block.

    Attributes:
        happened: {fault: how often}; None for requests that were let through.
    """

    def __init__(self, store: str, choose: Callable[[], Fault | None]):
        self.happened: Counter[Fault | None] = Counter()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._choose = choose
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _handle(self) -> None:
                proxy._handle(self, store)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, request: BaseHTTPRequestHandler, store: str) -> None:
        with self._lock:
            fault = self._choose()
            self.happened[fault] += 1
        parts = _parts(request)
        if fault == "drop before":
            next(parts)
            _hang_up(request)
            return
        body = b"".join(parts)
        if fault == "silence":
            self._over.wait(60)
            _hang_up(request)
        elif fault in ERRORS:
            status, code = ERRORS[fault]
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>so it is</Message></Error>".encode()
            _answer(request, status, {"Content-Type": "application/xml"}, text)
        else:
            connection = http.client.HTTPConnection(store, timeout=30)
            headers = {name: value for name, value in request.headers.items() if name.lower() not in _FRAMING}
            connection.request(request.command, request.path, body, headers | {"Content-Length": str(len(body))})
            found = connection.getresponse()
            data = found.read()
            connection.close()
            _answer(request, found.status, dict(found.getheaders()), data, whole=fault is None)
            if fault == "drop after":
                _hang_up(request)


_FRAMING = ("transfer-encoding", "content-length", "expect")


def _parts(request: BaseHTTPRequestHandler) -> Iterator[bytes]:
    """The body, in two or more parts."""
    if request.headers.get("Transfer-Encoding") == "chunked":
        while size := int(request.rfile.readline(), 16):
            yield request.rfile.read(size)
            request.rfile.readline()
        request.rfile.readline()
    else:
        length = int(request.headers.get("Content-Length") or 0)
        yield request.rfile.read(length // 2)
        yield request.rfile.read(length - length // 2)


def _answer(
    request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], data: bytes, whole: bool = True
) -> None:
    request.send_response_only(status)
    headers.setdefault("Content-Length", str(len(data)))
    for name, value in headers.items():
        if name.lower() not in ("transfer-encoding", "connection"):
            request.send_header(name, value)
    if whole or data:  # else nothing of an answer without a body comes at all
        request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(data if whole else data[: len(data) // 2])


def _hang_up(request: BaseHTTPRequestHandler) -> None:
    request.close_connection = True
    request.connection.shutdown(socket.SHUT_RDWR)
