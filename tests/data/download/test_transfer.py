"""One file over HTTP: what servers may do beside what `tests/matrix/test_download.py` has every service do."""

from __future__ import annotations

import errno
import hashlib
import json
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
import requests

from climafuse.data.download.access import Access, public_url
from climafuse.data.download.transfer import (
    Attempts,
    Origin,
    Policy,
    Transient,
    download,
    known_checksum,
)
from climafuse.errors import DownloadError, OutputError
from tests.data.download.rigs import POLICY
from tests.data.download.server import Answer, Server

CONTENT = b"\x89HDF\r\n\x1a\n" + random.Random(0).randbytes(200_000)
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
ACCESS = Access("the service", "Make an account.", ("secret",))


def origin(server: Server, **known: object) -> Origin:
    server.files.setdefault("/file.nc", CONTENT)
    return Origin(f"{server.url}/file.nc?signature=secret", requests.Session(), ACCESS, **known)  # type: ignore[arg-type]


def bring(server: Server, path: Path, **known: object) -> bytes:
    download(origin(server, **known), path, policy=POLICY, progress=lambda done, total: None)
    assert list(path.parent.iterdir()) == [path]
    return path.read_bytes()


def begin(path: Path, content: bytes, **noted: str | None) -> None:
    """What an earlier run left."""
    path.with_name(f"{path.name}.part").write_bytes(content)
    path.with_name(f"{path.name}.part.json").write_text(json.dumps(noted))


def ranges(server: Server) -> list[str | None]:
    return [request.headers.get("Range") for request in server.asked("/file.nc")]


def test_progress_tells_bytes_there_and_bytes_of_the_file(server: Server, tmp_path: Path) -> None:
    seen = []
    download(
        origin(server),
        tmp_path / "a.nc",
        policy=POLICY,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert sorted(seen) == seen


def test_without_a_size_a_chunked_body_is_whole_when_it_says_so(server: Server, tmp_path: Path) -> None:
    server.faults["/file.nc"] = ["chunked"]
    assert bring(server, tmp_path / "a.nc") == CONTENT


def test_without_size_and_checksum_nothing_tells_a_whole_file(server: Server, tmp_path: Path) -> None:
    server.faults["/file.nc"] = ["no length"] * 2
    with pytest.raises(DownloadError, match="neither size nor checksum"):
        bring(server, tmp_path / "a.nc")
    assert bring(server, tmp_path / "a.nc", checksum=MD5) == CONTENT


def test_a_body_without_length_that_ends_early_goes_on(server: Server, tmp_path: Path) -> None:
    """HTTP itself does not tell; the size that the service lists does."""
    server.faults["/file.nc"] = ["no length, truncate"]
    assert bring(server, tmp_path / "a.nc", size=len(CONTENT)) == CONTENT
    assert ranges(server) == [None, f"bytes={len(CONTENT) * 3 // 5}-"]


def test_a_weak_etag_is_compared_and_not_sent(server: Server, tmp_path: Path) -> None:
    server.etags["/file.nc"] = 'W/"1"'
    begin(tmp_path / "a.nc", CONTENT[:1000], version='W/"1"')
    assert bring(server, tmp_path / "a.nc") == CONTENT
    assert ranges(server) == ["bytes=1000-"]
    assert not server.sent("If-Range")

    (tmp_path / "a.nc").unlink()
    begin(tmp_path / "a.nc", b"\x89HDF of another version", version='W/"0"')
    assert bring(server, tmp_path / "a.nc") == CONTENT
    assert ranges(server)[1:] == ["bytes=23-", None]


def test_a_date_serves_where_there_is_no_etag(server: Server, tmp_path: Path) -> None:
    date = "Sat, 29 Feb 2020 00:00:00 GMT"
    server.etags["/file.nc"] = None
    begin(tmp_path / "a.nc", CONTENT[:1000], version=date)
    server.if_range = False
    server.dynamic["/file.nc"] = lambda request: Answer(
        206,
        CONTENT[1000:],
        {"Last-Modified": date, "Content-Range": f"bytes 1000-{len(CONTENT) - 1}/{len(CONTENT)}"},
    )
    assert bring(server, tmp_path / "a.nc") == CONTENT
    assert server.sent("If-Range") == {date}


def test_without_a_version_only_a_checksum_lets_a_file_go_on(server: Server, tmp_path: Path) -> None:
    server.etags["/file.nc"] = None
    begin(tmp_path / "a.nc", CONTENT[:1000], version=None, checksum=MD5)
    assert bring(server, tmp_path / "a.nc", checksum=MD5) == CONTENT
    assert ranges(server) == ["bytes=1000-"]

    (tmp_path / "a.nc").unlink()
    begin(tmp_path / "a.nc", CONTENT[:1000], version=None, checksum=None)
    assert bring(server, tmp_path / "a.nc") == CONTENT
    assert ranges(server)[1:] == [None]


@pytest.mark.parametrize("left", [CONTENT + b"more", CONTENT], ids=["longer", "as long"])
def test_a_part_that_cannot_go_on_is_not_asked_for_more(server: Server, tmp_path: Path, left: bytes) -> None:
    etag = f'"{hashlib.md5(CONTENT).hexdigest()}"'
    begin(tmp_path / "a.nc", left, version=etag)
    assert bring(server, tmp_path / "a.nc", size=len(CONTENT)) == CONTENT
    assert ranges(server) == ([None] if left != CONTENT else [])  # all there: only to be named

    (tmp_path / "a.nc").unlink()
    begin(tmp_path / "a.nc", left, version=etag)
    assert bring(server, tmp_path / "a.nc") == CONTENT  # 416 where the size is not known before
    assert ranges(server)[-2:] == [f"bytes={len(left)}-", None]


def test_what_is_left_of_another_part_fails_the_checksum_and_comes_anew(
    server: Server, tmp_path: Path
) -> None:
    etag = f'"{hashlib.md5(CONTENT).hexdigest()}"'
    begin(tmp_path / "a.nc", b"x" * 1000, version=etag)
    assert bring(server, tmp_path / "a.nc", checksum=MD5) == CONTENT
    assert ranges(server) == ["bytes=1000-", None]


@pytest.mark.parametrize("note", ["", "[]", '{"version": 3}'])
def test_a_note_that_is_none_begins_anew(server: Server, tmp_path: Path, note: str) -> None:
    begin(tmp_path / "a.nc", CONTENT[:1000])
    (tmp_path / "a.nc.part.json").write_text(note)
    assert bring(server, tmp_path / "a.nc") == CONTENT
    assert ranges(server) == [None]


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, DownloadError), (410, DownloadError), (400, DownloadError), (304, DownloadError)],
)
def test_a_status_that_stays_is_asked_once(
    server: Server, tmp_path: Path, status: int, kind: type[Exception]
) -> None:
    server.faults["/file.nc"] = [str(status)]
    with pytest.raises(kind, match=f"status {status}") as caught:
        bring(server, tmp_path / "a.nc")
    assert "signature" not in str(caught.value)
    assert len(server.asked("/file.nc")) == 1


@pytest.mark.parametrize(
    ("content", "said"), [(b"PK\x03\x04 rest", "a zip archive"), (b"GRIB rest", "another kind of file")]
)
def test_another_kind_of_file_is_refused(server: Server, tmp_path: Path, content: bytes, said: str) -> None:
    server.files["/file.nc"] = content * 100
    with pytest.raises(DownloadError, match=f"expected NetCDF; received {said}"):
        bring(server, tmp_path / "a.nc")


def test_a_server_that_is_not_there_is_told(server: Server, tmp_path: Path) -> None:
    server.http.server_close()
    with pytest.raises(DownloadError, match=r"no connection.* 4 times in a row"):
        bring(server, tmp_path / "a.nc")


def test_a_full_disk_is_told_with_the_bytes_and_the_part_stays(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, written = tmp_path / "a.nc", 0
    plain = Path.open

    class Full:
        def __init__(self, file) -> None:
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, block: bytes) -> None:
            nonlocal written
            if written:
                raise OSError(errno.ENOSPC, "No space left on device")
            written += self.file.write(block)

        def flush(self) -> None:
            self.file.flush()

    def full(self, mode="r", *args, **options):
        file = plain(self, mode, *args, **options)
        return Full(file) if self.name == "a.nc.part" and mode == "wb" else file

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OutputError, match=rf"room for {len(CONTENT) - 65536:,} more bytes.*No space left"):
        bring(server, path)
    monkeypatch.undo()
    assert bring(server, path) == CONTENT
    assert ranges(server) == [None, f"bytes={written}-"]


def test_a_folder_that_cannot_be_written_is_told_before_the_first_byte(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OutputError):
        bring(server, tmp_path / "taken" / "a.nc")


def test_waits_double_up_to_the_longest() -> None:
    policy = Policy(first_wait=1, longest_wait=10)
    assert [policy.wait(failures) for failures in range(1, 7)] == [1, 2, 4, 8, 10, 10]
    assert [policy.wait(1, asked) for asked in (0, 7, 3600, -5)] == [0, 7, 10, 0]


def test_retry_after_may_be_a_date(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In two hours: longer than we wait; the longest wait then."""
    caplog.set_level("INFO", logger="climafuse")
    later = format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True)
    answers = [Answer(503, b"", {"Retry-After": later}), Answer(429, b"", {"Retry-After": "soon"})]
    server.dynamic["/file.nc"] = lambda request: answers.pop(0) if answers else Answer(200, CONTENT)
    assert bring(server, tmp_path / "a.nc") == CONTENT
    assert [record.getMessage().partition("again in ")[2] for record in caplog.records] == [
        "0.05 s",
        "0.02 s",
    ]


def test_getting_further_sets_the_count_of_failures_back() -> None:
    attempts = Attempts(replace(POLICY, attempts=2, first_wait=0), "a.nc")
    for position in (0, 10, 20, 30):
        attempts.failed(Transient("broke"), position)
    with pytest.raises(DownloadError, match="broke, 2 times in a row"):
        attempts.failed(Transient("broke"), 30)


def test_credentials_and_signatures_are_cut_out_of_texts() -> None:
    access = Access("service", "Do.", ("ab", "user:pass word", "pass word"))
    said = access.told(
        "https://user:pw@host:8080/a/b?X-Amz-Signature=1#f and user:pass word or dXNlcjpwYXNzIHdvcmQ= of ab\n!"
    )
    assert said == "https://host:8080/a/b and *** or *** of ***  !".replace("  ", " ")
    assert public_url("https://u:p@h/x.nc?q=1") == "https://h/x.nc"
    assert "pass" not in repr(access)


def test_checksums_are_known_by_their_length() -> None:
    assert known_checksum("D41D8CD98F00B204E9800998ECF8427E") == "md5:d41d8cd98f00b204e9800998ecf8427e"
    assert known_checksum("0" * 64) == f"sha256:{'0' * 64}"
    assert known_checksum("1220" + "0" * 64) is None  # a multihash
    assert known_checksum(None) is known_checksum("") is known_checksum("not hex") is None
