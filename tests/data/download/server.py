"""A server on 127.0.0.1 that serves files and misbehaves as it is told, and remembers what it was asked."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class Request:
    """What the server was asked."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""


@dataclass
class Answer:
    """What a dynamic path answers."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, value: object, status: int = 200, **headers: str) -> Answer:
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})


class Server:
    """Files and faults by path.

    Attributes:
        files: Path → content.
        etags: Path → ETag; those of contents where absent, none where None.
        faults: Path → faults of the next answers, in order; after them, all goes well. A status; "429 after"
            (with Retry-After); "stall" and "truncate" after three fifths of the body; "flip" a bit or send
            "garbage" of the right length; "chunked", "longer" by its header, "no length", "no length, truncate";
            "login" page, said to be one or "login unsaid".
        dynamic: Prefix of paths → function of the request.
        ranges: Whether ranges are known.
        if_range: Whether If-Range is honored.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.etags: dict[str, str | None] = {}
        self.faults: dict[str, list[str]] = {}
        self.dynamic: dict[str, Callable[[Request], Answer]] = {}
        self.ranges = self.if_range = True
        self.requests: list[Request] = []
        self.stop = threading.Event()
        self.stalled = 1.5  # seconds; far longer than the patience of HASTY
        handler = type("Handler", (_Handler,), {"owner": self})
        self.http = _Quiet(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def asked(self, path: str) -> list[Request]:
        return [request for request in self.requests if urlsplit(request.path).path == path]

    def sent(self, header: str) -> set[str]:
        return {request.headers[header] for request in self.requests if header in request.headers}


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=lambda: server.http.serve_forever(poll_interval=0.02), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop.set()
        server.http.shutdown()
        server.http.server_close()
        thread.join()


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # clients of these tests hang up
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    owner: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the acknowledgment of its header

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_DELETE = do_HEAD = do_GET

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        request = Request(self.command, self.path, dict(self.headers), self.rfile.read(length))
        owner, path = self.owner, urlsplit(self.path).path
        owner.requests.append(request)
        script = owner.faults.get(path, [])
        fault = script.pop(0) if script else ""
        if fault.isdigit():
            return self._send(Answer(int(fault), b"no"))
        if fault == "429 after":
            return self._send(Answer(429, b"slow down", {"Retry-After": "0"}))
        if fault == "login":
            return self._send(Answer(200, b"<html>Earthdata Login</html>", {"Content-Type": "text/html"}))
        if fault == "login unsaid":
            return self._send(
                Answer(200, b"\n<!DOCTYPE html>" + b" " * 99, {"Content-Type": "application/octet-stream"})
            )
        for prefix, function in owner.dynamic.items():
            if path.startswith(prefix):
                return self._send(function(request), fault)
        if path not in owner.files:
            return self._send(Answer(404, b"nothing here"))
        return self._send(self._file(path, request), fault)

    def _file(self, path: str, request: Request) -> Answer:
        owner, content = self.owner, self.owner.files[path]
        etag = owner.etags.get(path, f'"{hashlib.md5(content).hexdigest()}"')
        headers = {"Content-Type": "application/octet-stream"} | ({"ETag": etag} if etag else {})
        wanted = request.headers.get("Range")
        same = not owner.if_range or request.headers.get("If-Range", etag) == etag
        if wanted is None or not owner.ranges or not same:
            return Answer(200, content, headers)
        start = int(wanted.removeprefix("bytes=").partition("-")[0])
        if start >= len(content):
            return Answer(416, b"", headers | {"Content-Range": f"bytes */{len(content)}"})
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return Answer(206, content[start:], headers | {"Content-Range": span})

    def _send(self, answer: Answer, fault: str = "") -> None:
        body = answer.body
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if fault == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        elif not fault.startswith("no length"):
            self.send_header("Content-Length", str(len(body) + (7 if fault == "longer" else 0)))
        if fault:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command == "HEAD" or answer.status in (204, 304):
            return
        try:
            if fault == "chunked":
                self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
            elif fault == "garbage":
                self.wfile.write(b"?" * len(body))
            elif fault == "flip":
                self.wfile.write(body[:-1] + bytes([body[-1] ^ 1]))
            elif fault in ("stall", "truncate", "no length, truncate"):
                self.wfile.write(body[: len(body) * 3 // 5])
                self.wfile.flush()
                if fault == "stall":
                    self.owner.stop.wait(self.owner.stalled)
            elif fault == "longer":
                self.wfile.write(body)
            else:
                self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            pass
