"""Files and folders appear whole or not at all, and what cannot be written is one error."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from climafuse.data import files
from climafuse.data.files import HOLE, check_destination, whole_file, whole_folder, write_sparse
from climafuse.errors import OutputError
from tests.files import small_files


@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_a_place_below_a_file_cannot_be_written(whole, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with (
        pytest.raises(OutputError, match="expected a place that can be written") as caught,
        whole(tmp_path / "file" / "below"),
    ):
        pytest.fail("the block must not run")
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "kept"


PLACES = [
    "folder",
    "file/below",
    "file/far/below",
    "dangling/x",
    "n" * 250,
    "file",
    "new",
    "deep/er/new",
    "link",
]


@pytest.mark.parametrize("where", PLACES)
def test_a_destination_is_checked_as_it_is_written(where: str, tmp_path: Path) -> None:
    """Oracle: writing there."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))

    def tried(act: Callable[[Path], object]) -> bool:
        try:
            act(tmp_path / where)
        except OutputError:
            return False
        return True

    def write(path: Path) -> None:
        with whole_file(path) as temporary:
            temporary.write_text("new")

    promised = tried(check_destination)
    assert sorted(tmp_path.rglob("*")) == before
    assert promised == tried(write)


@pytest.mark.skipif(not os.geteuid(), reason="root may write anywhere")
def test_a_destination_without_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OutputError):
        check_destination(tmp_path / "locked" / "deep" / "new")


def test_what_stood_there_before_survives_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")

    def fail_halfway() -> None:
        with whole_file(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_only_when_it_is_full(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "folder") as temporary:
        (temporary / "part").write_text("x")
        assert not (tmp_path / "folder").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder" / "part").read_text() == "x"


def test_what_a_killed_process_left_half_filled_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = "import sys; from climafuse.data.files import whole_folder\n"
    fill += "with whole_folder(sys.argv[1]) as folder:\n"
    fill += "    (folder / 'part').write_bytes(b'x' * 1000); print('filling', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", fill, str(tmp_path / "folder")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"filling\n"
        monkeypatch.setattr(files, "YOUNG", 0.0)
        (left,) = tmp_path.iterdir()
        with whole_folder(tmp_path / "other"), whole_folder(tmp_path / "folder.2"):
            pass
        with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "folder"):
            raise ZeroDivisionError
        assert (left / "part").exists()  # it is being filled
        process.kill()
        process.wait()
    monkeypatch.setattr(files, "YOUNG", 5.0)
    with whole_folder(tmp_path / "folder.3"):
        pass
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "folder"):
        raise ZeroDivisionError
    assert left.exists()  # so young that it may not be in use yet
    monkeypatch.setattr(files, "YOUNG", 0.0)
    with whole_folder(tmp_path / "folder") as temporary:
        (temporary / "part").write_text("y")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "folder.2", "folder.3", "other"]
    assert (tmp_path / "folder" / "part").read_text() == "y"


@given(st.lists(st.booleans(), max_size=6), st.binary(max_size=40))
def test_a_file_with_holes_reads_as_it_was_written(tmp_path_factory, filled, rest):
    content = b"".join((b"\0" * (HOLE - 1) + b"x") if full else bytes(HOLE) for full in filled) + rest
    path = tmp_path_factory.mktemp("sparse") / "file"
    write_sparse(path, memoryview(content))
    assert path.read_bytes() == content


def test_zeros_take_no_room(tmp_path: Path) -> None:
    content = np.zeros(2**20, dtype=np.float32)
    content[2**18] = 1
    write_sparse(tmp_path / "file", content.data.cast("B"))
    found = (tmp_path / "file").stat()
    assert found.st_size == 2**22
    if 512 * found.st_blocks >= 2**22:
        pytest.skip("this file system keeps zeros")
    assert 512 * found.st_blocks <= 2**16


def test_a_disk_that_fills_up_is_told_in_whatever_words(tmp_path: Path) -> None:
    """safetensors reports it in an exception of its own; the limit on the size of files stands for a full disk."""
    with (
        pytest.raises(OutputError, match="os error 27"),
        whole_folder(tmp_path / "new") as folder,
        small_files(),
    ):
        save_file({"a": torch.zeros(100_000)}, folder / "a.safetensors")
    assert list(tmp_path.iterdir()) == []
