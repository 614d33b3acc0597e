"""Checkpoints are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from climafuse.errors import CheckpointError
from climafuse.training.checkpoint import (
    checkpoint_path,
    list_checkpoints,
    newest_good_checkpoint,
    remove_unfinished,
    rotate_checkpoints,
    verify_checkpoint,
    write_folder,
)


def save(output: Path, step: int, content: str = "weights") -> Path:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_text(content)

    return write_folder(checkpoint_path(output, step), write, kind="checkpoint", details={"step": step})


def test_saved_folder_verifies_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    assert verify_checkpoint(path)["details"] == {"step": 3}
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint-3"]


def test_checkpoints_sort_by_number_not_by_name(tmp_path: Path) -> None:
    for step in (10, 9, 100):
        save(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert [step for step, _ in list_checkpoints(tmp_path)] == [9, 10, 100]
    assert newest_good_checkpoint(tmp_path) == tmp_path / "checkpoint-100"


def test_damaged_newest_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    (path / "model.safetensors").write_text("weightz")
    assert newest_good_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    assert "checkpoint-2" in caplog.text


@pytest.mark.parametrize("name", ["model.safetensors", "README.md", "folder"])
def test_a_checkpoint_with_a_link_is_passed_over_and_a_link_to_a_whole_one_is_not(
    tmp_path: Path, name: str
) -> None:
    save(tmp_path / "run", 5)
    newest = save(tmp_path / "elsewhere", 9)
    (tmp_path / "run" / "checkpoint-9").symlink_to(newest)
    assert newest_good_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoint-9"
    outside = tmp_path / "outside"
    if (newest / name).exists():
        (newest / name).rename(outside)
    else:
        outside.mkdir()
    (newest / name).symlink_to(outside)  # the same content
    assert newest_good_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoint-5"


def test_no_checkpoint_is_none_but_only_damaged_ones_are_an_error(tmp_path: Path) -> None:
    assert newest_good_checkpoint(tmp_path / "nowhere") is None
    path = save(tmp_path, 2)
    (path / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"1 damaged.*checkpoint-2"):
        newest_good_checkpoint(tmp_path)


KILLED = """
import os, signal, sys
from pathlib import Path
from climafuse.training import checkpoint

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

setattr({module}, {function!r}, die)
def write(folder):
    (folder / "model.safetensors").write_text("new weights")
checkpoint.write_folder(sys.argv[1], write, kind="checkpoint")
"""


@pytest.mark.parametrize(
    ("module", "function"),
    [("checkpoint", "write_manifest"), ("checkpoint.os", "fsync"), ("checkpoint.os", "rename")],
)
def test_kill_before_the_rename_leaves_the_previous_checkpoint(
    tmp_path: Path, module: str, function: str
) -> None:
    save(tmp_path, 1)
    program = KILLED.format(module=module, function=function)
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "checkpoint-2")], check=False)
    assert done.returncode == -9
    assert (tmp_path / "tmp-checkpoint-2" / "model.safetensors").exists()
    assert newest_good_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    assert remove_unfinished(tmp_path) == [tmp_path / "tmp-checkpoint-2"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint-1"]
    save(tmp_path, 2)
    assert newest_good_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


def test_manifest_is_written_after_the_files_reached_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        events.append("sync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real_fsync(descriptor)

    def rename(source: Path, target: Path) -> None:
        events.append(f"rename {Path(source).name} {Path(target).name}")
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    save(tmp_path, 4)
    assert events == [
        "sync model.safetensors",
        "sync manifest.json",
        "sync tmp-checkpoint-4",
        "rename tmp-checkpoint-4 checkpoint-4",
        f"sync {tmp_path.name}",
    ]


FULL = """
import resource, signal, sys
import numpy as np
from safetensors.numpy import save_file
from climafuse.errors import CheckpointError
from climafuse.training.checkpoint import write_folder

def write(folder):
    if sys.argv[2] == "python":
        (folder / "model.safetensors").write_bytes(b"x" * 100_000)
    else:
        save_file({"a": np.zeros(100_000)}, folder / "model.safetensors")

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error from the write itself, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    write_folder(sys.argv[1], write, kind="checkpoint", bytes_needed=123_456)
except CheckpointError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on the size of files")
@pytest.mark.parametrize("writer", ["python", "safetensors"])
def test_full_disk_leaves_the_previous_checkpoint(tmp_path: Path, writer: str) -> None:
    save(tmp_path, 1, "old")
    target = str(tmp_path / "checkpoint-1")
    done = subprocess.run(
        [sys.executable, "-c", FULL, target, writer], check=True, capture_output=True, text=True
    )
    assert "about 123,456 bytes" in done.stdout
    assert "untouched" in done.stdout
    assert (tmp_path / "checkpoint-1" / "model.safetensors").read_text() == "old"
    assert newest_good_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint-1"]


def test_too_little_space_is_refused_before_writing(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        raise AssertionError("must not be called")

    with pytest.raises(CheckpointError, match=r"1,000,000,000,000,000,000 bytes of free space"):
        write_folder(tmp_path / "checkpoint-1", write, kind="checkpoint", bytes_needed=10**18)
    assert not any(tmp_path.iterdir())


def test_a_mistake_in_the_writer_is_not_called_a_disk_error(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_folder(tmp_path / "model", write, kind="model")
    assert not any(tmp_path.iterdir())


def test_a_model_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for text in ("one", "two"):
        write_folder(
            tmp_path / "model", lambda folder, text=text: (folder / text).write_text(text), kind="model"
        )
    assert sorted(entry.name for entry in (tmp_path / "model").iterdir()) == ["manifest.json", "two"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_replacing_puts_the_old_one_back_if_the_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, "old")
    real_rename = os.rename

    def rename(source: Path, target: Path) -> None:
        if Path(source).name == "tmp-checkpoint-1":
            raise OSError("the disk went away")
        real_rename(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(CheckpointError, match="went away"):
        save(tmp_path, 1, "new")
    assert (tmp_path / "checkpoint-1" / "model.safetensors").read_text() == "old"


def test_kill_between_the_two_renames_is_mended(tmp_path: Path) -> None:
    save(tmp_path, 1, "old")
    os.rename(
        tmp_path / "checkpoint-1", tmp_path / "tmp-replaced-checkpoint-1"
    )  # where a kill would have left it
    remove_unfinished(tmp_path)
    assert newest_good_checkpoint(tmp_path) == tmp_path / "checkpoint-1"


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(CheckpointError, match="saving would delete"):
        write_folder(tmp_path / "thesis", lambda folder: None, kind="model")
    assert (tmp_path / "thesis" / "chapter.tex").exists()


def test_rotation_keeps_the_newest_and_the_protected(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    (tmp_path / "tmp-mine").mkdir()  # not ours
    save(tmp_path, 9)  # damaged, say, and passed over
    deleted = rotate_checkpoints(tmp_path, keep=2, newest=4, protect=[tmp_path / "checkpoint-1"])
    assert deleted == [tmp_path / "checkpoint-2"]
    assert [step for step, _ in list_checkpoints(tmp_path)] == [1, 3, 4, 9]
    assert remove_unfinished(tmp_path) == []
    assert (tmp_path / "tmp-mine").is_dir()


def test_neither_configuration_nor_checkpoints_import_torch() -> None:
    program = (
        "import sys; import climafuse.training.config, climafuse.training.checkpoint, climafuse.training;"
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
