"""Plans: what is there, what is missing, and that names stay in the folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from climafuse.data.download.plan import LOCK_NAME, RECORD_NAME, Part, Plan, fetch
from climafuse.data.lock import alone
from climafuse.errors import DownloadError, UsageError

CONTENT = b"0123456789"


def writing(content: bytes = CONTENT):
    def bring(path: Path, policy: object, progress: object) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)

    return bring


def failing(path: Path, policy: object, progress: object) -> None:
    raise DownloadError("b.nc", expected="it", received="nothing", remedy="Wait.")


def test_files_before_a_failure_stay(tmp_path: Path) -> None:
    plan = Plan("era5", tmp_path / "x", (Part("a.nc", "a", writing()), Part("b.nc", "b", failing)))
    with pytest.raises(DownloadError, match=r"b\.nc"):
        fetch(plan)
    assert plan.states() == {"a.nc": "whole", "b.nc": "missing"}
    record = json.loads((tmp_path / "x" / RECORD_NAME).read_text())
    (entry,) = record["files"].values()
    assert (entry["size"], entry["sha256"]) == (10, hashlib.sha256(CONTENT).hexdigest())
    assert (entry["service"], entry["source"]) == ("era5", "a")


def test_plans_that_share_a_folder_share_its_record(tmp_path: Path) -> None:
    fetch(Plan("era5", tmp_path, (Part("a.nc", "a", writing()),)))
    fetch(Plan("arco", tmp_path, (Part("b.nc", "b", writing(b"b")),)))
    both = Plan("era5", tmp_path, (Part("a.nc", "a", failing), Part("b.nc", "b", failing)))
    done = fetch(both)
    assert (done.num_fetched, done.num_bytes) == (0, 11)


def test_a_file_that_no_run_brought_is_kept_only_if_the_checksum_of_the_service_fits(tmp_path: Path) -> None:
    (tmp_path / "a.nc").write_bytes(CONTENT)
    md5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
    known = Plan("merra2", tmp_path, (Part("a.nc", "a", failing, checksum=md5),))
    unknown = Plan("merra2", tmp_path, (Part("a.nc", "a", writing(b"new")),))
    assert (known.states(), unknown.states()) == ({"a.nc": "whole"}, {"a.nc": "changed"})
    assert fetch(known).num_fetched == 0
    assert unknown.states() == {"a.nc": "whole"}  # it is in the record now


def test_begun_files_are_not_counted_as_missing(tmp_path: Path) -> None:
    parts = (Part("a.nc", "a", writing(), size=100), Part("b.nc", "b", writing(), size=50, exact=True))
    plan = Plan("era5", tmp_path, parts)
    (tmp_path / "a.nc.part").write_bytes(b"x" * 30)
    assert plan.summary() | {"bytes_free": 0} == {
        "service": "era5",
        "folder": str(tmp_path),
        "files": [
            {
                "name": "a.nc",
                "bytes": 100,
                "exact": False,
                "checksum": None,
                "state": "partial",
                "source": "a",
            },
            {"name": "b.nc", "bytes": 50, "exact": True, "checksum": None, "state": "missing", "source": "b"},
        ],
        "bytes": 150,
        "exact": False,
        "bytes_missing": 120,
        "bytes_free": 0,
        "fits": True,
    }


@pytest.mark.parametrize("name", ["../a.nc", "/etc/a.nc", "a/b.nc", "", "..", ".hidden.nc", "a\\b.nc"])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(DownloadError, match="a plain file name"):
        Part(name, "a", writing())


@pytest.mark.parametrize("names", [[], ["a.nc", "a.nc"]])
def test_a_plan_has_files_of_different_names(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(DownloadError, match="files of different names"):
        Plan("era5", tmp_path, tuple(Part(name, "a", writing()) for name in names))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 2, "files": {}}', '{"format": 1, "files": {"a": {"size": "1"}}}', "\x00"],
)
def test_an_altered_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD_NAME).write_text(text)
    with pytest.raises(DownloadError, match="a record of downloads"):
        Plan("era5", tmp_path, (Part("a.nc", "a", writing()),)).states()


def test_two_downloads_into_one_folder_do_not_mix(tmp_path: Path) -> None:
    """The second comes while the first brings its file; and again when all is there, which needs no lock."""
    second = Plan("arco", tmp_path, (Part("b.nc", "b", writing()),))
    whole = Plan("era5", tmp_path, (Part("a.nc", "a", failing),))

    def during(path: Path, policy: object, progress: object) -> None:
        with pytest.raises(UsageError, match="no other process is writing"):
            fetch(second)
        path.write_bytes(CONTENT)

    fetch(Plan("era5", tmp_path, (Part("a.nc", "a", during),)))
    assert {path.name for path in tmp_path.iterdir()} == {"a.nc", RECORD_NAME}
    with alone(tmp_path / LOCK_NAME):
        assert fetch(whole).num_fetched == 0
    assert fetch(second).num_fetched == 1
