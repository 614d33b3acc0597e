"""Who may reach a page: this machine alone, and of Gradio's server only what the page needs.

Gradio's server can upload, proxy and serve files, run code assistants and more. A page on 127.0.0.1 is reached by every
web page in the user's browser, too: other hosts and origins are refused, and the browser is told to load nothing from
elsewhere.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from climafuse.errors import OutputError
from climafuse.report.page import CSS, inside_loop, load_gradio

HOST = "127.0.0.1"
MOST_BYTES = 64 * 2**10  # of a request: a question is a few hundred

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Asgi: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_READ = re.compile(
    r"/(?:(?:assets|static)/[\w./-]+|config/?|theme\.css|favicon\.ico|manifest\.json|robots\.txt"
    r"|gradio_api/(?:info/?|theme\.css|app_id/?|startup-events|heartbeat/\w+|queue/data))?"
)
_WRITTEN = re.compile(r"/gradio_api/(?:queue/join|reset|cancel)/?")
_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio's page needs both
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "form-action 'none'",
        "base-uri 'self'",
    )
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


class Guard:
    """Lets through what a page needs, from this machine.

    Args:
        app: The application behind it.
        port: Where it is served.
    """

    def __init__(self, app: Asgi, port: int) -> None:
        self.app = app
        self.hosts = {f"{name}:{port}".encode() for name in (HOST, "localhost")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers or refuses a request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        refusal: tuple[str, int] | None = ("no such page", 404)
        if scope["type"] == "http":
            refusal = self._refusal(scope)
        if refusal is not None:
            if scope["type"] == "http":
                await _drain(scope, receive)
            await _refuse(send, *refusal)
            return

        async def send_guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        await self.app(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> tuple[str, int] | None:
        headers = dict(scope["headers"])
        if headers.get(b"host") not in self.hosts:  # a name of somebody else's that leads here
            return "another host", 403
        origin = headers.get(b"origin")
        if origin is not None and origin.removeprefix(b"http://") not in self.hosts:
            return "another origin", 403
        method, path = scope["method"], scope["path"]
        if method in ("GET", "HEAD") and _READ.fullmatch(path) and ".." not in path:
            return None
        if method != "POST" or not _WRITTEN.fullmatch(path):
            return "no such page", 404
        length = headers.get(b"content-length", b"")
        if not length.isdigit() or int(length) > MOST_BYTES:
            return f"at most {MOST_BYTES} bytes, of a stated number", 413
        return None


async def _drain(scope: Scope, receive: Receive) -> None:
    """Read a body of stated, small size: closing the connection on one unread can lose the answer on its way."""
    length = dict(scope["headers"]).get(b"content-length", b"")
    if length.isdigit() and int(length) <= MOST_BYTES:
        while (await receive()).get("more_body", False):
            pass


async def _refuse(send: Send, text: str, status: int) -> None:
    content = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": [*content, *_HEADERS]})
    await send({"type": "http.response.body", "body": text.encode()})


def make_app(page: Any, port: int) -> Asgi:
    """The application that serves a page.

    Args:
        page: From `build_page`.
        port: Where it will be served.
    """
    gr = load_gradio()
    fastapi = importlib.import_module("fastapi")
    # Fonts by name only: a theme's own are fetched from elsewhere.
    font = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Arial", "sans-serif"]
    mono = ["ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]
    app = inside_loop(
        lambda: gr.mount_gradio_app(
            fastapi.FastAPI(openapi_url=None),
            page,
            path="",
            server_name=HOST,
            server_port=port,
            footer_links=[],
            run_history=False,
            show_error=False,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            pwa=False,
            max_file_size=1,
            theme=gr.themes.Default(font=font, font_mono=mono),
            css=CSS,
        )
    )
    return Guard(app, port)


def bind(port: int) -> socket.socket:
    """Take a port of this machine's own address.

    Args:
        port: The port; 0 for any free one.

    Raises:
        OutputError: It is taken.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen()  # from here on nobody else can take it
    except OSError as error:
        listening.close()
        raise OutputError(
            "port",
            expected="a free port",
            received=f"{port}: {error.strerror or error}",
            remedy="Choose another with --port, or 0 for any free one.",
        ) from error
    return listening


def serve(page: Any, listening: socket.socket, *, started: Callable[[str], object]) -> None:
    """Serve a page until it is interrupted.

    Args:
        page: From `build_page`.
        listening: From `bind`.
        started: Told the address once the page can be opened.
    """
    uvicorn = importlib.import_module("uvicorn")
    port = listening.getsockname()[1]

    class Server(uvicorn.Server):  # type: ignore[name-defined]
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                started(f"http://{HOST}:{port}")

    config = uvicorn.Config(
        make_app(page, port),
        log_level="warning",
        access_log=False,
        ws="none",
        proxy_headers=False,
        server_header=False,
        # Open pages keep a connection; they are not waited for.
        timeout_graceful_shutdown=1,
    )
    with contextlib.closing(listening):
        Server(config).run(sockets=[listening])
