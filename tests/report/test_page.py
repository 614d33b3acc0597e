"""The page behind a real server: asked by Gradio's own client, and by those who mean harm."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import re
import signal
import subprocess
import sys
import time as clock
from html.parser import HTMLParser
from pathlib import Path

import pytest
from gradio_client import Client
from typer.testing import CliRunner

from climafuse.cli.app import app
from climafuse.errors import OutputError, UsageError
from climafuse.model.inference import Reader
from climafuse.report import page as module
from climafuse.report.inquiry import Inquiry, Told
from climafuse.report.page import answer, error_line, heading, load_gradio
from climafuse.report.serving import HOST, MOST_BYTES, Guard, bind
from tests.report.serving import serving
from tests.report.test_inquiry import PLACE, run  # noqa: F401 (a fixture)

HOSTILE = (
    "</p><script>alert(1)</script><img src=http://a.test/x onerror=alert(1)>\"'${a}{{7*7}}`\\\x1b[31m\u202e"
)


@pytest.fixture(scope="module")
def inquiry(run):  # noqa: F811
    return Inquiry.open(run)


@pytest.fixture(scope="module")
def served(inquiry):
    """Port of a page that is served while the tests of this file run."""
    with serving(inquiry) as port:
        yield port


@pytest.fixture(scope="module")
def client(served):
    return Client(f"http://{HOST}:{served}", verbose=False, analytics_enabled=False)


@pytest.fixture
def saying(monkeypatch):
    def say(text):
        monkeypatch.setattr(Reader, "answer", lambda self, windows, prompts, **_: [text for _ in prompts])

    return say


def _ask(client, inquiry, prompt="What is the mean temperature?", *, time=None, place=PLACE):
    return client.predict(time or inquiry.fields.times()[0], place, prompt, False, False, api_name="/ask")


def test_an_answer_comes_checked(client, inquiry, saying):
    saying("Mean temperature 70 °C.")
    shown = _ask(client, inquiry)
    (check,) = inquiry.ask(inquiry.fields.times()[0], PLACE, "Warm?", explain=False).checks
    assert "Mean temperature 70 °C." in shown
    assert "✗ wrong" in shown
    assert check["exact"] in shown
    saying(f"Mean temperature {check['field']}.")
    assert "✓ right" in _ask(client, inquiry)
    saying("The wind speed averages 7 m/s.")
    assert "? not in the fields" in _ask(client, inquiry)
    assert _ask(client, inquiry).count("data:image/webp;base64,") == 1


def test_the_heading_tells_random_weights(inquiry, monkeypatch):
    config = inquiry.reader.model.config
    for random in (True, False):
        monkeypatch.setattr(config, "backbone", {**config.backbone, "random_weights": random})
        assert ("random weights, for capacity only" in heading(inquiry)) == random


def test_errors_are_one_line_of_the_page(client, inquiry):
    for place, prompt, words in (("Valencia", "Warm?", "Valencia, ES"), (PLACE, " ", "question")):
        shown = _ask(client, inquiry, prompt, place=place)
        assert 'class="error"' in shown
        assert words in shown
        assert "Traceback" not in shown
        assert "\n" not in shown


def test_another_place_moves_the_map_and_a_wrong_one_does_not(client, inquiry):
    time = inquiry.fields.times()[0]
    notice, shown, examples = client.predict(time, "-30,150", api_name="/choose")
    assert notice == ""
    assert "Chosen: 30°S 150°E" in shown
    assert examples["samples"]
    notice, shown, *_ = client.predict(time, "Nowherechester", api_name="/choose")
    assert "Nowherechester" in notice
    assert "data:image" not in str(shown)


def test_asking_at_once_means_waiting_in_line(client, inquiry, monkeypatch):
    inside, most = [], []

    def slow(self, windows, prompts, **_):
        inside.append(1)
        most.append(len(inside))
        clock.sleep(0.05)
        inside.pop()
        return [prompts[0]]

    monkeypatch.setattr(Reader, "answer", slow)
    jobs = [
        client.submit(inquiry.fields.times()[0], PLACE, f"Number {n}?", False, False, api_name="/ask")
        for n in range(4)
    ]
    for number, job in enumerate(jobs):
        assert f"Number {number}?" in job.result(timeout=120)
    assert most == [1, 1, 1, 1]


# ---- Nothing else can be reached ------------------------------------------------------------------------------------


def _request(port, method, path, body=None, **headers):
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, body, {key.replace("_", "-"): v for key, v in headers.items()})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/file/etc/passwd"),
        ("GET", "/gradio_api/proxy=http://127.0.0.1:22/"),
        ("GET", "/gradio_api/file=http://127.0.0.1:22/"),
        ("GET", "/static/../../../../etc/passwd"),
        ("GET", "/static/%2e%2e/%2e%2e/page.py"),
        ("GET", "/monitoring"),
        ("GET", "/gradio_api/vibe-code"),
        ("GET", "/gradio_api/token"),
        ("GET", "/gradio_api/runs"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("POST", "/gradio_api/upload"),
        ("POST", "/gradio_api/vibe-edit"),
        ("POST", "/gradio_api/run/ask"),
        ("POST", "/gradio_api/call/ask"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/component_server"),
        ("PUT", "/"),
        ("DELETE", "/config"),
    ],
)
def test_what_the_page_does_not_need_is_not_there(served, method, path):
    status, _, content = _request(served, method, path, "{}" if method == "POST" else None)
    assert (status, content) == (404, b"no such page")


@pytest.mark.parametrize(
    ("length", "events"), [(b"4", "rrss"), (str(MOST_BYTES + 1).encode(), "ss"), (b"", "ss")]
)
def test_a_small_body_is_read_before_it_is_refused(length, events):
    """A connection closed on bytes nobody read is reset, and the answer may be lost with it."""
    body = [{"type": "http.request", "body": b"{}", "more_body": more} for more in (True, False)]
    seen = []

    async def receive():
        seen.append("r")
        return body.pop(0)

    async def send(message):
        seen.append("s")

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/nowhere",
        "headers": [(b"host", f"{HOST}:80".encode()), (b"content-length", length)],
    }
    asyncio.run(Guard(None, 80)(scope, receive, send))
    assert "".join(seen) == events


def test_other_hosts_and_origins_are_refused(served):
    assert _request(served, "GET", "/", Host=f"evil.test:{served}")[0] == 403
    assert _request(served, "GET", "/", Host=HOST)[0] == 403  # of another port
    assert _request(served, "GET", "/", Host=f"localhost:{served}")[0] == 200
    for origin in ("http://evil.test", "null", f"https://{HOST}:{served}", f"http://{HOST}:{served + 1}"):
        assert _request(served, "POST", "/gradio_api/queue/join", "{}", Origin=origin)[0] == 403
    own = _request(
        served,
        "POST",
        "/gradio_api/reset",
        "{}",
        Origin=f"http://{HOST}:{served}",
        Content_Type="application/json",
    )
    assert own[0] != 403


def test_requests_are_bounded(served):
    # Without the body: it is refused unread, and to send it nevertheless may meet a closed connection.
    for header, value in (("content-length", str(MOST_BYTES + 1)), ("transfer-encoding", "chunked")):
        connection = http.client.HTTPConnection(HOST, served, timeout=30)
        with contextlib.closing(connection):
            connection.putrequest("POST", "/gradio_api/queue/join")
            connection.putheader(header, value)
            connection.endheaders()
            assert connection.getresponse().status == 413


class _Links(HTMLParser):
    """What a browser would load."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href")]


def test_the_page_names_no_other_server(served):
    status, headers, content = _request(served, "GET", "/")
    assert status == 200
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "connect-src 'self'" in policy
    assert "http" not in policy
    links = _Links()
    links.feed(content.decode())
    assert len(links.found) > 3
    assert not [link for link in links.found if ":" in link or link.startswith("//")]
    config = json.loads(_request(served, "GET", "/config")[2])
    assert not config["analytics_enabled"]
    assert not config["stylesheets"]
    assert "@import" not in (theme := _request(served, "GET", "/theme.css")[2].decode())
    assert all(link.startswith("data:") for link in re.findall(r"url\(['\"]?([^)]*)", theme))


def test_nobody_else_can_reach_it(inquiry):
    with contextlib.closing(bind(0)) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"
        with pytest.raises(OutputError, match="--port"):
            bind(listening.getsockname()[1])


# ---- What is written into the page -----------------------------------------------------------------------------------


def test_words_are_never_markup():
    check = {"fact": HOSTILE, "said": HOSTILE, "field": HOSTILE, "right": None, "exact": HOSTILE}
    told = Told(HOSTILE, HOSTILE, HOSTILE, (check,), ((HOSTILE, 0.5),), (), 1.0)
    for shown in (
        answer(told),
        error_line(UsageError(HOSTILE, expected=HOSTILE, received=HOSTILE, remedy=HOSTILE)),
    ):
        assert "<script" not in shown
        assert "<img" not in shown
        for mark in ("${", "{{", "`", "\\", "\x1b", "\u202e"):
            assert mark not in shown
        assert "alert(1)" in shown  # as words


# ---- The command ----------------------------------------------------------------------------------------------------


def test_without_gradio_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UsageError, match=r"pip install 'climafuse\[demo\]'"):
        load_gradio()
    result = CliRunner().invoke(app, ["demo", "nowhere"])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "climafuse[demo]" in result.stderr


def test_a_mistake_is_one_line():
    result = CliRunner().invoke(app, ["demo", "nowhere", "--port", "0"])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "nowhere" in result.stderr


# Runs the command line where every name that is looked up and every address that is called is noted.
_WATCHED = """
import sys
def watch(event, arguments):
    if event == "socket.getaddrinfo" and arguments[0] not in ("127.0.0.1", "localhost", None):
        print("ELSEWHERE", event, arguments[0], file=sys.stderr, flush=True)
    if event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][0] != "127.0.0.1":
        print("ELSEWHERE", event, arguments[1], file=sys.stderr, flush=True)
sys.addaudithook(watch)
from climafuse.cli.app import main
main()
"""


@pytest.mark.slow
def test_the_command_serves_asks_nobody_and_ends_with_ctrl_c(run):  # noqa: F811
    command = [sys.executable, "-c", _WATCHED, "demo", str(run), "--port", "0", "--no-browser"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(module.__file__).parents[2],
    )
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), process.stderr.read() if process.poll() else address
        client = Client(address, verbose=False, analytics_enabled=False)
        time = client.view_api(return_format="dict")["named_endpoints"]["/ask"]["parameters"][0]["type"]
        shown = client.predict(
            time["enum"][0], PLACE, "What is the mean temperature?", True, False, api_name="/ask"
        )
        assert 'class="answer"' in shown
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, stderr
    assert stdout == ""
    assert "ELSEWHERE" not in stderr
    assert "Traceback" not in stderr
