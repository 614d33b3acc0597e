"""MERRA-2: which collections, what NASA's catalog is asked and says, and how a login is found."""

from __future__ import annotations

import logging
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from earthaccess.auth import Auth

from climafuse.data.download import Policy, fetch, merra2
from climafuse.data.download.merra2 import COLLECTIONS, collections_of
from climafuse.data.download.request import stored_variables
from climafuse.data.variables import VARIABLES
from climafuse.errors import AccessError, DownloadError, VariableNotFoundError
from tests.data.download.rigs import POLICY, Merra2
from tests.data.download.server import Answer, Server


@pytest.fixture
def rig(server: Server, other: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Merra2:
    (tmp_path / "rig").mkdir()
    return Merra2(server, other, tmp_path / "rig", monkeypatch)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (["t2m", "ws10"], ["M2T1NXSLV"]),
        (["tprate", "t2m"], ["M2T1NXFLX", "M2T1NXSLV"]),
        (["t850", "zg500"], ["M2T1NXSLV"]),  # hourly
        (["t700", "u", "q850"], ["M2I3NPASM", "M2T1NXSLV"]),  # on levels, three-hourly
    ],
)
def test_variables_choose_their_collections(asked: list[str], expected: list[str]) -> None:
    assert list(collections_of(stored_variables(asked))) == expected


def test_the_table_holds_canonical_names_and_what_merra2_lacks_is_refused() -> None:
    assert {name for held in COLLECTIONS.values() for name in held} <= set(VARIABLES)
    with pytest.raises(VariableNotFoundError, match="MERRA-2 does not hold it"):
        collections_of([VARIABLES["sst_anomaly"]])


def test_the_catalog_is_asked_for_version_and_days_without_a_login(rig: Merra2, tmp_path: Path) -> None:
    plan = rig.plan(tmp_path)
    query = parse_qs(urlsplit(rig.server.asked("/search/granules.umm_json")[-1].path).query)
    assert query["short_name"] == ["M2T1NXSLV"]
    assert query["version"] == ["5.12.4"]
    assert query["temporal[]"] == ["2020-02-28T00:00:00Z,2020-02-29T23:59:59Z"]
    assert not rig.server.sent("Authorization")
    assert [part.source for part in plan.parts] == [f"{rig.server.url}/data/{name}" for name in rig.names]
    assert plan.exact


def test_a_collection_may_be_named(rig: Merra2, tmp_path: Path) -> None:
    with pytest.raises(
        DownloadError, match=r"M2I1NXASM: expected granules of version 5.12.4 .* received none"
    ):
        rig.plan(tmp_path, variables=(), collection="M2I1NXASM")


@pytest.mark.parametrize(
    ("answer", "attempts", "remedy"),
    [(None, 3, "Check network and proxy"), (503, 8, "Run the same command again")],
)
def test_no_network_is_told_soon_and_a_bad_answer_waited_for(
    rig: Merra2,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    answer: int | None,
    attempts: int,
    remedy: str,
) -> None:
    caplog.set_level(logging.INFO, logger="climafuse")
    if answer is None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]  # nobody listens there once it is closed
        rig.system = replace(rig.system, cmr_base_url=f"http://127.0.0.1:{port}/search/")
    else:
        rig.server.dynamic["/search/granules"] = lambda request: Answer(answer, b"")
    with pytest.raises(DownloadError, match=rf"{attempts} times in a row\. {remedy}"):
        rig.plan(tmp_path, policy=Policy(first_wait=0.001, longest_wait=0.002))
    assert len(caplog.records) == attempts - 1


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([{"Name": "a", "SizeInBytes": 7, "Size": 1, "SizeUnit": "MB"}], (7, True, None)),
        ([{"Name": "Not provided", "Size": 1.5, "SizeUnit": "MB"}], (1572864, False, None)),
        ([{"Name": "b", "SizeInBytes": 1}, {"Name": "a", "Size": 2, "SizeUnit": "KB"}], (2048, False, None)),
        ([{"Name": "b", "SizeInBytes": 1}, {"Name": "c", "SizeInBytes": 2}], (None, False, None)),
        ([{"Name": "a", "Size": 2, "SizeUnit": "NA"}], (None, False, None)),
        (
            [{"Name": "a", "SizeInBytes": 7, "Checksum": {"Value": "0" * 32, "Algorithm": "MD5"}}],
            (7, True, f"md5:{'0' * 32}"),
        ),
        ([], (None, False, None)),
    ],
)
def test_sizes_and_checksums_as_far_as_the_catalog_tells(
    entries: list[dict[str, Any]], expected: tuple[int | None, bool, str | None]
) -> None:
    granule = {"DataGranule": {"ArchiveAndDistributionInformation": entries}}
    assert merra2._archived(granule, "a") == expected


def test_a_granule_without_a_file_is_refused(rig: Merra2, tmp_path: Path) -> None:
    rig.names = ["page.html"]
    rig.server.files["/data/page.html"] = b""
    with pytest.raises(DownloadError, match="a link to a NetCDF file"):
        rig.plan(tmp_path)


def test_without_a_login_the_remedy_is_told_and_nothing_is_asked(
    rig: Merra2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("EARTHDATA_TOKEN", "EARTHDATA_USERNAME", "EARTHDATA_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    into = tmp_path / "data"
    with pytest.raises(
        AccessError, match=r"neither environment variables nor ~/.netrc.*machine urs.earthdata"
    ):
        fetch(rig.plan(into), policy=POLICY)
    assert not rig.server.asked(rig.path)
    assert not into.exists()


def test_a_login_that_is_refused_is_told_without_what_the_server_said(
    rig: Merra2,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv("EARTHDATA_TOKEN")
    (tmp_path / "rig" / "netrc").write_text(f"machine {rig.system.edl_hostname} login me password hunter2\n")
    answer = requests.Response()
    answer.status_code, answer._content = 401, b"no such user: me, hunter2"
    monkeypatch.setattr(Auth, "_find_or_create_token", lambda self: answer)
    caplog.set_level(logging.DEBUG)
    with pytest.raises(AccessError, match="a login that it refused") as caught:
        fetch(rig.plan(tmp_path), policy=POLICY)
    assert "hunter2" not in str(caught.value) + caplog.text
    assert caught.value.__cause__ is None
