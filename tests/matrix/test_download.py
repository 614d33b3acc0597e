"""Downloads: three services, and everything that goes wrong between them and a disk.

Clients are the real ones (earthaccess, cdsapi, fsspec with zarr); the server is a local one that misbehaves on
purpose. The oracle of what arrives is the field that the server's files were made from.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from climafuse.data.download import fetch
from climafuse.data.download.plan import RECORD_NAME
from climafuse.errors import AccessError, ClimafuseError, DownloadError, OutputError
from tests.conftest import Cell
from tests.data.download.rigs import HASTY, POLICY, RIGS, SECRETS, Answer, Arco, Era5, Merra2, Rig
from tests.data.download.server import serving

slow = partial(pytest.param, marks=pytest.mark.slow)  # a sample is enough for the quick suite
RESUMING = [Merra2, Era5]  # bytes of files that are there; ARCO's files are made here


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture(params=RIGS, ids=lambda rig: rig.name)
def rig(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    (tmp_path / "rig").mkdir()
    with serving() as server, serving() as other:
        yield request.param(server, other, tmp_path / "rig", monkeypatch)


def only(*rigs: type[Rig]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("rig", rigs, indirect=True, ids=lambda rig: rig.name)


def test_whole_files_arrive_once(rig: Rig, into: Path, cell: Cell) -> None:
    cell("download", rig.name, "whole")
    plan = rig.plan(into)
    before = plan.summary()
    assert [file["state"] for file in before["files"]] == ["missing", "missing"]
    assert before["bytes_missing"] == before["bytes"] > 0
    assert not into.exists()  # planning writes nothing
    done = fetch(plan, policy=POLICY)
    assert (done.num_fetched, len(done.files)) == (2, 2)
    rig.check(into, plan)
    assert {path.name for path in into.iterdir()} == {RECORD_NAME, *(part.name for part in plan.parts)}

    again, asked = rig.plan(into), len(rig.server.requests)
    assert fetch(again, policy=POLICY).num_fetched == 0
    assert len(rig.server.requests) == asked
    assert again.summary()["bytes_missing"] == 0


@pytest.mark.parametrize("fault", ["500", slow("503"), slow("429 after"), "stall", "truncate"])
@pytest.mark.sampled(2)
def test_a_fault_that_passes_costs_another_attempt(rig: Rig, into: Path, cell: Cell, fault: str) -> None:
    cell("download", rig.name, {"429 after": "429"}.get(fault, fault))
    plan = rig.plan(into)
    rig.server.faults[rig.path] = [fault, fault]
    fetch(plan, policy=HASTY if fault == "stall" else POLICY)
    rig.check(into, plan)
    assert not rig.server.faults[rig.path]
    if rig.has_ranges and fault in ("stall", "truncate"):
        offsets = [request.headers.get("Range") for request in rig.server.asked(rig.path)]
        assert offsets[0] is None
        assert None not in offsets[1:]  # went on, and did not begin again


@pytest.mark.slow
def test_a_fault_that_stays_is_told_with_what_to_do(rig: Rig, into: Path, cell: Cell) -> None:
    cell("download", rig.name, "never")
    plan = rig.plan(into)
    rig.server.faults[rig.path] = ["500"] * 99
    with pytest.raises(DownloadError, match=r"500.* 4 times in a row.*[Rr]un the same command again later"):
        fetch(plan, policy=POLICY)
    assert len(rig.server.asked(rig.path)) == POLICY.attempts
    rig.server.faults.clear()
    fetch(rig.plan(into), policy=POLICY)
    rig.check(into, plan)


def test_bytes_changed_on_the_way_are_found(rig: Rig, into: Path, cell: Cell) -> None:
    if rig.name == "arco":  # a chunk has no checksum of its own: it is found where it does not decode
        rig.server.faults[rig.path] = ["garbage"]
    else:
        rig.server.faults[rig.path] = ["flip"]
    cell("download", rig.name, "altered")
    plan = rig.plan(into)
    fetch(plan, policy=POLICY)
    rig.check(into, plan)


@only(*RESUMING)
def test_a_file_of_another_size_is_refused(rig: Rig, into: Path, cell: Cell) -> None:
    cell("download", rig.name, "other size")
    plan = rig.plan(into)
    rig.server.faults[rig.path] = ["longer"]
    with pytest.raises(DownloadError, match=r"expected [\d,]+ bytes.*received a file of [\d,]+ bytes"):
        fetch(plan, policy=POLICY)
    assert not (into / plan.parts[0].name).exists()


@only(*RESUMING)
def test_a_server_without_ranges_sends_the_file_again(rig: Rig, into: Path, cell: Cell) -> None:
    cell("download", rig.name, "no ranges")
    rig.server.ranges = False
    rig.server.faults[rig.path] = ["truncate"]
    plan = rig.plan(into)
    fetch(plan, policy=POLICY)
    rig.check(into, plan)


@only(*RESUMING)
@pytest.mark.parametrize("if_range", [slow(True, id="If-Range"), pytest.param(False, id="no If-Range")])
def test_another_version_of_a_file_begins_anew(rig: Rig, into: Path, cell: Cell, if_range: bool) -> None:
    """Half of the first version is there when the server has a second one of the same size."""
    cell("download", rig.name, "other version")
    rig.checksums, rig.server.if_range = False, if_range
    plan = rig.plan(into, end="2020-02-28") if rig.name == "era5" else rig.plan(into)
    rig.server.faults[rig.path] = ["truncate"] + ["500"] * 3
    with pytest.raises(DownloadError):
        fetch(plan, policy=POLICY)
    part = into / f"{plan.parts[0].name}.part"
    content = rig.server.files[rig.path]
    assert part.read_bytes() == content[: part.stat().st_size] != b""
    second = content[:100] + bytes(byte ^ 255 for byte in content[100:])
    rig.server.files[rig.path] = second
    fetch(plan, policy=POLICY)
    assert (into / plan.parts[0].name).read_bytes() == second


@only(*RESUMING)
def test_a_redirect_to_another_host_gets_no_credential(rig: Rig, into: Path, cell: Cell) -> None:
    cell("download", rig.name, "redirect")
    plan = rig.plan(into)
    rig.other.files |= rig.server.files
    if rig.name == "era5":  # results lie elsewhere, and so may the API one day
        rig.other.dynamic["/api/"] = rig.server.dynamic["/api/"]
        rig.server.dynamic = {"/api/": lambda request: _moved(rig.other.url, request.path)}
        with pytest.raises(AccessError):
            fetch(plan, policy=POLICY)
        rig.server.dynamic = dict(rig.other.dynamic)
        rig.host = rig.other.url
        rig.other.files = rig.server.files
    else:
        rig.server.dynamic["/data/"] = lambda request: _moved(rig.other.url, request.path)
    fetch(plan, policy=POLICY)
    rig.check(into, plan)
    assert rig.other.requests
    assert not rig.other.sent("Authorization") | rig.other.sent("PRIVATE-TOKEN")
    sent = rig.server.sent("Authorization") | rig.server.sent("PRIVATE-TOKEN")
    assert any(secret in header for secret in SECRETS for header in sent)


@only(*RESUMING)
@pytest.mark.parametrize("fault", ["login", slow("login unsaid")])
def test_a_login_page_is_not_a_file(rig: Rig, into: Path, cell: Cell, fault: str) -> None:
    cell("download", rig.name, "login page")
    plan = rig.plan(into)
    rig.server.faults[rig.path] = [fault]
    with pytest.raises(AccessError, match=r"a web page instead of the file.*account"):
        fetch(plan, policy=POLICY)
    assert len(rig.server.asked(rig.path)) == 1
    assert not (into / plan.parts[0].name).exists()
    fetch(plan, policy=POLICY)
    rig.check(into, plan)


@pytest.mark.parametrize("status", [slow("401"), "403"])
def test_a_refusal_is_told_once_with_the_remedy(rig: Rig, into: Path, cell: Cell, status: str) -> None:
    cell("download", rig.name, status)
    plan = rig.plan(into)
    rig.server.faults[rig.path] = [status]
    with pytest.raises(DownloadError, match=status) as caught:
        fetch(plan, policy=POLICY)
    assert len(rig.server.asked(rig.path)) == 1
    if rig.name != "arco":
        assert isinstance(caught.value, AccessError)
        assert {"merra2": ".netrc", "era5": ".cdsapirc"}[rig.name] in str(caught.value)


def test_an_interrupted_run_is_continued(rig: Rig, into: Path, cell: Cell) -> None:
    cell("download", rig.name, "interrupted")
    plan = rig.plan(into)
    interrupted = plan.parts[0].name if rig.has_ranges else plan.parts[1].name

    def interrupt(name: str, done: int, total: int | None) -> None:
        if name == interrupted and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(plan, policy=POLICY, progress=interrupt)
    assert not (into / interrupted).exists()
    states = {file["name"]: file["state"] for file in rig.plan(into).summary()["files"]}
    if rig.has_ranges:
        have = (into / f"{interrupted}.part").stat().st_size
        assert have > 0
        assert states[interrupted] == "partial"
    else:
        assert states == {plan.parts[0].name: "whole", interrupted: "missing"}
    asked = len(rig.server.asked(rig.path))
    again = rig.plan(into)
    fetch(again, policy=POLICY)
    rig.check(into, again)
    since = rig.server.asked(rig.path)[asked:]
    assert [request.headers.get("Range") for request in since] == (
        [f"bytes={have}-"] if rig.has_ranges else []
    )


def test_no_room_is_found_before_the_first_byte(
    rig: Rig, into: Path, cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell("download", rig.name, "no room")
    plan = rig.plan(into)
    needed = plan.summary()["bytes_missing"]
    asked = len(rig.server.requests)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=needed - 1))
    with pytest.raises(OutputError, match=rf"{needed:,} free bytes; received {needed - 1:,}"):
        fetch(plan, policy=POLICY)
    assert len(rig.server.requests) == asked
    assert not into.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10 * needed))
    fetch(plan, policy=POLICY)


@pytest.mark.slow
def test_a_file_that_changed_on_the_disk_is_brought_again(rig: Rig, into: Path, cell: Cell) -> None:
    cell("download", rig.name, "damaged later")
    plan = rig.plan(into)
    fetch(plan, policy=POLICY)
    path = into / plan.parts[1].name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert [file["state"] for file in plan.summary()["files"]] == ["whole", "changed"]
    assert fetch(plan, policy=POLICY).num_fetched == 1
    rig.check(into, plan)


def test_credentials_are_nowhere(
    rig: Rig, into: Path, cell: Cell, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not in plans, logs of any library, errors with their causes, records, or any file beside those fetched."""
    cell("download", rig.name, "no secret told")
    caplog.set_level(logging.DEBUG)
    plan = rig.plan(into)
    told = [repr(plan), json.dumps(plan.summary())]
    for fault in ("401", "login", "500"):
        rig.server.faults[rig.path] = [fault] * POLICY.attempts
        with contextlib.suppress(ClimafuseError):
            try:
                fetch(plan, policy=POLICY)
            except ClimafuseError as error:
                told.append("".join(traceback.format_exception(error)))
                raise
        told += [path.read_text(errors="replace") for path in into.glob("*")]
    assert len(told) > 2
    rig.server.faults.clear()
    fetch(plan, policy=POLICY)
    told += [path.read_text(errors="replace") for path in into.glob("*")]
    told += [record.getMessage() for record in caplog.records if "urllib3" not in record.name]
    told += list(capfd.readouterr())
    assert not [text for text in told for secret in SECRETS if secret in text]


def _moved(host: str, path: str) -> Answer:
    return Answer(302, b"", {"Location": f"{host}{path}"})


@only(Arco)
def test_a_chunk_that_is_not_there_is_refused(rig: Rig, into: Path, cell: Cell) -> None:
    cell("download", rig.name, "chunk absent")
    plan = rig.plan(into)
    del rig.server.files[rig.path]
    with pytest.raises(DownloadError, match=r"2m_temperature/0.0.0: expected a chunk; received none"):
        fetch(plan, policy=POLICY)


@only(Era5)
def test_a_request_that_the_store_fails_is_told(rig: Rig, into: Path, cell: Cell) -> None:
    cell("download", rig.name, "request failed")
    rig.states = ["accepted", "failed"]
    plan = rig.plan(into)
    with pytest.raises(DownloadError, match=r"The job has failed MARS said no to \*\*\*"):
        fetch(plan, policy=POLICY)
    assert not into.exists()  # the next run asks anew


@only(Era5)
def test_a_request_that_waits_is_not_made_twice(rig: Rig, into: Path, cell: Cell) -> None:
    cell("download", rig.name, "request waits")
    plan = rig.plan(into, end="2020-02-28")
    rig.server.faults["/api/retrieve/v1/jobs/job0"] = ["500"] * 4  # after it was accepted
    with pytest.raises(DownloadError, match="500"):
        fetch(plan, policy=POLICY)
    assert len(rig.jobs) == 1
    fetch(plan, policy=POLICY)
    assert list(rig.jobs) == ["job0"]
    fetch(rig.plan(into), policy=POLICY)
    assert list(rig.jobs) == ["job0", "job1"]
    rig.check(into, rig.plan(into))


@pytest.mark.slow
@only(Era5)
def test_a_request_of_an_earlier_run_that_is_gone_is_made_anew(rig: Rig, into: Path, cell: Cell) -> None:
    cell("download", rig.name, "request gone")
    plan = rig.plan(into, end="2020-02-28")
    into.mkdir()
    (into / f"{plan.parts[0].name}.request.json").write_text('{"request": "forgotten"}')
    fetch(plan, policy=POLICY)
    assert list(rig.jobs) == ["job0"]
    assert {path.name for path in into.iterdir()} == {RECORD_NAME, plan.parts[0].name}


@pytest.mark.slow
@only(Era5)
def test_an_api_that_fails_for_a_while_is_asked_again(rig: Rig, into: Path, cell: Cell) -> None:
    cell("download", rig.name, "API fails")
    plan = rig.plan(into)
    process = "/api/retrieve/v1/processes/reanalysis-era5-single-levels"
    rig.server.faults |= {process: ["503"], f"{process}/execution": ["stall"]}
    rig.server.faults |= {
        "/api/retrieve/v1/jobs/job0": ["502"],
        "/api/retrieve/v1/jobs/job0/results": ["429"],
    }
    fetch(plan, policy=POLICY)
    rig.check(into, plan)


@only(Merra2)
def test_a_catalog_that_fails_for_a_while_is_asked_again(rig: Rig, into: Path, cell: Cell) -> None:
    cell("download", rig.name, "search fails")
    rig.server.faults["/search/granules.umm_json"] = ["503", "stall"]
    plan = rig.plan(into, policy=HASTY)
    fetch(plan, policy=POLICY)
    rig.check(into, plan)
    rig.server.faults["/search/granules.umm_json"] = ["400"]
    with pytest.raises(DownloadError, match="search for granules"):
        rig.plan(into)
