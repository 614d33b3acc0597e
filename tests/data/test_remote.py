"""Files behind URIs: memory and a local web server stand for the cloud."""

import json
import os
import re
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
import pytest

from climafuse.data.sources import load_fields, open_climate
from climafuse.errors import ClimateFileError
from tests.data.fixtures import era5, truth, write


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIMAFUSE_HOME", str(tmp_path / "home"))
    yield
    memory = fsspec.filesystem("memory")
    memory.rm("/", recursive=True) if memory.ls("/") else None


class _Handler(SimpleHTTPRequestHandler):
    """Serves a folder; ``/short/`` promises more than it sends, ``/secret/`` asks for an account."""

    requests: ClassVar[list[str]] = []

    def do_GET(self):
        self.requests.append(self.path)
        if self.path.startswith("/secret/"):
            self.send_error(403)
        elif self.path.startswith("/short/"):
            content = Path(self.directory, self.path.removeprefix("/short/")).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        else:
            super().do_GET()

    def do_HEAD(self):
        self.path = self.path.removeprefix("/short")
        super().do_HEAD()

    def log_message(self, *args):
        pass


@pytest.fixture
def web(tmp_path):
    folder = tmp_path / "web"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
    _Handler.requests.clear()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()
    thread.join()


def _upload(path, target):
    fsspec.filesystem("memory").put(str(path), target, recursive=path.is_dir())
    return f"memory://{target}"


@pytest.mark.parametrize("kind", ["netcdf4", "netcdf3", "zarr2", "zarr3"])
def test_files_in_memory_and_by_uri(kind, tmp_path):
    known = truth()
    path = write(era5(known), tmp_path / "file", kind)
    for uri in (_upload(path, "bucket/file"), f"file://{path}"):
        with open_climate(uri) as opened:
            np.testing.assert_array_equal(opened["t2m"].values, known.fields["t2m"])
            assert opened.attrs["climate_source"] == uri


def test_patterns_of_uris(tmp_path):
    known = truth("t2m", num_times=6)
    for number in range(3):
        part = era5(known).isel(valid_time=slice(2 * number, 2 * number + 2))
        _upload(write(part, tmp_path / f"{number}.nc", "netcdf4"), f"bucket/{number}.nc")
    with open_climate("memory://bucket/*.nc") as opened:
        np.testing.assert_array_equal(opened["t2m"].values, known.fields["t2m"])
    with pytest.raises(ClimateFileError, match="no file that matches"):
        open_climate("memory://bucket/*.nc4")


def test_a_file_on_the_web_is_fetched_once_and_anew_when_it_changes(web, tmp_path):
    url, folder = web
    known = truth("t2m")
    write(era5(known), folder / "file.nc", "netcdf4")
    for _ in range(2):
        with open_climate(f"{url}/file.nc?version=1") as opened:
            np.testing.assert_array_equal(opened["t2m"].values, known.fields["t2m"])
    assert [path for path in _Handler.requests if "file.nc?" in path] == ["/file.nc?version=1"]
    other = truth("t2m", seed=1, num_times=5)
    (folder / "file.nc").unlink()
    write(era5(other), folder / "file.nc", "netcdf4")
    os.utime(folder / "file.nc", (0, 0))
    with open_climate(f"{url}/file.nc?version=1") as opened:
        np.testing.assert_array_equal(opened["t2m"].values, other.fields["t2m"])
    assert not list((tmp_path / "home").rglob("*.tmp"))


def test_zarr_on_the_web(web):
    url, folder = web
    known = truth()
    write(era5(known), folder / "file.zarr", "zarr2")
    with open_climate(f"{url}/file.zarr") as opened:
        np.testing.assert_array_equal(load_fields(opened)["t2m"].values, known.fields["t2m"])


def test_transfers_that_fail_say_so_and_leave_nothing(web, tmp_path):
    url, folder = web
    write(era5(truth("t2m")), folder / "file.nc", "netcdf4")
    for name, match in (("absent.nc", "nothing there"), ("short/file.nc", "cannot be read"),
                        ("secret/file.nc", "nothing there.*whether you may read it")):  # fmt: skip
        with pytest.raises(ClimateFileError, match=match) as caught:
            open_climate(f"{url}/{name}")
        assert name in str(caught.value)
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file()] == []
    with pytest.raises(ClimateFileError):
        open_climate("http://127.0.0.1:9/file.nc")  # nobody there


def test_virtual_references_and_chains_are_refused(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    references = tmp_path / "references.json"
    references.write_text(json.dumps({"version": 1, "refs": {".zgroup": [str(secret)]}}))
    for source in (
        f"reference://?fo={references}",
        f"reference::file://{references}",
        f"simplecache::reference::file://{references}",
        f"zip://file.nc::file://{tmp_path}/file.zip",
    ):
        with pytest.raises(ClimateFileError, match="one protocol"):
            open_climate(source)
    with pytest.raises(ClimateFileError, match="virtual references"):
        open_climate(references)


@pytest.mark.parametrize(
    ("uri", "match"),
    [
        ("memory://nowhere/file.nc", "nothing there"),
        ("nonsense://file.nc", "not known"),
    ],
)
def test_uris_that_lead_nowhere(uri, match):
    with pytest.raises(ClimateFileError, match=match):
        open_climate(uri)


@pytest.mark.parametrize(
    ("uri", "package", "extra"),
    [("https://a/b.nc", "aiohttp", "climafuse[cloud]"), ("gs://a/b.zarr", "gcsfs", "climafuse[arco]")],
)
def test_a_missing_package_names_the_extra(uri, package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    # fsspec keeps the classes of protocols that were used before.
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, uri.partition(":")[0], raising=False)
    with pytest.raises(ClimateFileError, match=re.escape(extra)):
        open_climate(uri)
