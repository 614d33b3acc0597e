"""A page that is served in a thread of the tests."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest
import uvicorn

from climafuse.report.inquiry import Inquiry
from climafuse.report.page import build_page
from climafuse.report.serving import HOST, bind, serve


@contextlib.contextmanager
def serving(inquiry: Inquiry) -> Iterator[int]:
    """Serve the page; the port it is at."""
    listening = bind(0)
    port = listening.getsockname()[1]
    started = threading.Event()
    addresses: list[str] = []

    def note(address: str) -> None:
        addresses.append(address)
        started.set()

    servers: list[uvicorn.Server] = []

    class Kept(uvicorn.Server):
        def __init__(self, config: uvicorn.Config) -> None:
            super().__init__(config)
            servers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn, "Server", Kept)
        # Laid out in the thread, too: a browser has an event loop running in that of the tests.
        thread = threading.Thread(target=lambda: serve(build_page(inquiry), listening, started=note))
        thread.start()
        assert started.wait(120)
    assert addresses == [f"http://{HOST}:{port}"]
    yield port
    servers[0].should_exit = True
    thread.join(30)
    assert not thread.is_alive()
