from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from climafuse.data.lock import alone, in_use, remove_unused
from climafuse.errors import OutputError, UsageError

HOLD = """
import sys
from pathlib import Path
from climafuse.data.lock import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("killed", [True, False])
def test_another_process_is_kept_out_until_the_one_that_writes_is_gone(tmp_path: Path, killed: bool) -> None:
    path = tmp_path / "new" / "lock"
    with hold(path) as process:
        with pytest.raises(UsageError, match=r"new: expected a folder that no other process is writing"):
            alone(path).__enter__()
        assert path.exists()
        if killed:
            process.kill()
        elif process.stdin is not None:
            process.stdin.close()
    assert path.exists() == killed
    with alone(path):
        assert path.exists()
    assert not path.exists()


@pytest.mark.parametrize("filled", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_a_folder_that_is_left_empty_was_not_asked_for(tmp_path: Path, there: bool, filled: bool) -> None:
    folder = tmp_path / "folder"
    if there:
        folder.mkdir()
    with alone(folder / "lock"):
        if filled:
            (folder / "file").touch()
    assert folder.exists() == (there or filled)


def test_a_lock_that_was_removed_meanwhile_is_not_that_of_the_next(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with alone(path):
        path.unlink()
        path.write_text("of another process")
    assert path.read_text() == "of another process"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file: expected a folder that can be written"):
        alone(tmp_path / "file" / "lock").__enter__()


def test_a_file_system_without_locks_is_told_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(OutputError, match=r"a place where files can be locked.*Function not implemented"):
        alone(tmp_path / "new" / "lock").__enter__()
    assert not list(tmp_path.iterdir())


def test_it_waits_for_another_as_long_as_told(tmp_path: Path) -> None:
    held = alone(tmp_path / "lock")
    held.__enter__()
    start = time.monotonic()
    with pytest.raises(UsageError, match="no other process is writing"):
        alone(tmp_path / "lock", wait=0.1).__enter__()
    assert time.monotonic() - start >= 0.1
    end = threading.Timer(0.2, held.__exit__, (None, None, None))
    end.start()
    with alone(tmp_path / "lock", wait=30.0):
        assert time.monotonic() - start < 25
    end.join()
    assert not list(tmp_path.iterdir())


def test_without_locks_nothing_counts_as_unused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    path = tmp_path / "file"
    path.write_bytes(b"content")
    monkeypatch.setattr(fcntl, "flock", unsupported)
    with in_use(path) as file:
        assert file.read() == b"content"
    assert not remove_unused(path)
    assert path.exists()
