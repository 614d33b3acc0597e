"""Folders that appear whole or not at all: how checkpoints and models reach the disk.

The protocol, each step on disk before the next begins:

    1. write every file into `tmp-<name>` beside the destination, and fsync each
    2. write `manifest.json` (sizes, SHA-256, versions) last, fsync it and the folder
    3. rename `tmp-<name>` to `<name>`, fsync the parent
    4. verify what is now there; only then delete what it replaces and older checkpoints

A crash before 3 leaves a `tmp-` folder that nobody takes for a checkpoint; a crash after it leaves a whole
checkpoint. Nothing here knows what is in the files, and nothing imports torch.

A disk that is full or fails is a `CheckpointError` that says how many bytes were to be written.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from climafuse.errors import CheckpointError, ClimafuseError, is_disk_error
from climafuse.manifest import MANIFEST_NAME, verify_folder, write_manifest

__all__ = [
    "checkpoint_path",
    "disk_errors",
    "list_checkpoints",
    "newest_good_checkpoint",
    "remove_unfinished",
    "rotate_checkpoints",
    "verify_checkpoint",
    "write_folder",
]

log = logging.getLogger(__name__)

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_UNFINISHED = "tmp-"
_REPLACED = "tmp-replaced-"
_OWN = ("tmp-checkpoint-", "tmp-model")  # what a killed process may leave in a run's folder


def checkpoint_path(output: str | Path, step: int) -> Path:
    """Where the checkpoint of an optimizer step lies in a run's output folder."""
    return Path(output) / f"checkpoint-{step}"


def list_checkpoints(output: str | Path) -> list[tuple[int, Path]]:
    """All checkpoints of a run by name, oldest step first. Says nothing about whether they are whole."""
    found = []
    for path in Path(output).glob("checkpoint-*"):
        match = _CHECKPOINT.fullmatch(path.name)
        if match and path.is_dir():
            found.append((int(match[1]), path))
    return sorted(found)


def write_folder(
    destination: str | Path,
    write: Callable[[Path], None],
    *,
    kind: str,
    details: Mapping[str, Any] | None = None,
    bytes_needed: int = 0,
) -> Path:
    """Writes a folder so that a reader sees either all of it or what was there before.

    Args:
        destination: The folder to make. An earlier one is replaced if it was itself written by this function.
        write: Fills the folder it is given.
        kind: "checkpoint" or "model", recorded in the manifest.
        details: More to record in the manifest; JSON values.
        bytes_needed: An estimate of the size; too little free space is refused before anything is written.

    Returns:
        The destination.

    Raises:
        CheckpointError: The disk is full or failing, or the destination is a folder of something else. What
            was there before is untouched.
    """
    destination = Path(destination)
    _check_replaceable(destination)
    temporary = destination.parent / f"{_UNFINISHED}{destination.name}"
    try:
        with disk_errors(destination, CheckpointError, lambda: max(bytes_needed, _size(temporary))):
            temporary.parent.mkdir(parents=True, exist_ok=True)
            _check_space(destination, bytes_needed)
            if temporary.exists():
                shutil.rmtree(temporary)
            temporary.mkdir()
            write(temporary)
            # The data first: a manifest that reached the disk vouches for files that reached it before.
            for path in sorted(temporary.rglob("*")):
                _fsync(path)
            write_manifest(temporary, kind=kind, details=details)
            _fsync(temporary / MANIFEST_NAME)
            _fsync(temporary)
            _rename_over(temporary, destination)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return destination


@contextmanager
def disk_errors(path: Path, kind: type[ClimafuseError], bytes_needed: Callable[[], int]) -> Iterator[None]:
    """Turns errors of the disk into one that names the file and the bytes that were to be written.

    Args:
        path: The file or folder.
        kind: Type of the error to raise.
        bytes_needed: About how much was to be written; 0 where something was to be read or deleted.

    Raises:
        ClimafuseError: Of that kind.
    """
    try:
        yield
    except Exception as error:
        if not is_disk_error(error):
            raise
        size = bytes_needed()
        raise kind(
            str(path),
            expected="a writable, working disk" + (f" with room for about {size:,} bytes" if size else ""),
            received=f"{type(error).__name__}: {error}",
            remedy="Free space or give another output folder; what was saved before is untouched.",
        ) from error


def newest_good_checkpoint(output: str | Path, *, with_best: bool = True) -> Path | None:
    """The checkpoint to resume from: the newest whose manifest verifies.

    Args:
        output: A run's output folder.
        with_best: Whether the checkpoint of its best step so far must verify, too: a run that ends with the
            weights of the best step needs both.

    Returns:
        The folder, or None where there is no checkpoint at all. Damaged ones are passed over with a logged
        warning.

    Raises:
        CheckpointError: There are checkpoints, and none of them is whole.
    """
    failures = []
    for step, path in reversed(list_checkpoints(output)):
        try:
            details = _verify(path, step)
            best = details.get("best_step")
            if with_best and best and best != step:
                _verify(checkpoint_path(output, best), best)
        except CheckpointError as error:
            failures.append(error)
        else:
            for failure in failures:
                log.warning("passing over a damaged checkpoint: %s", failure)
            return path
    if failures:
        raise CheckpointError(
            str(output),
            expected="at least one whole checkpoint",
            received=f"{len(failures)} damaged ones; the newest: {failures[0]}",
            remedy="Start again in another output folder.",
        )
    return None


def _verify(path: Path, step: int) -> dict[str, Any]:
    """Verifies a checkpoint, and that it is the one of its name; returns the details of its manifest."""
    details: dict[str, Any] = verify_checkpoint(path)["details"]
    if details.get("step", step) != step:
        raise CheckpointError(
            str(path),
            expected=f"the checkpoint of step {step}",
            received=f"that of step {details['step']}, under another name",
            remedy="Give the folder its own name back.",
        )
    return details


def verify_checkpoint(directory: str | Path) -> dict[str, Any]:
    """As `manifest.verify_folder`, and it must hold its files itself.

    What the caches of hubs hold are links to files elsewhere; no checkpoint of a run comes from there.

    Raises:
        CheckpointError: Names the file and what differs, or the link.
    """
    directory = Path(directory)
    links = sorted(path for path in directory.rglob("*") if path.is_symlink())
    if links:
        raise CheckpointError(
            str(links[0]),
            expected="a file of the checkpoint",
            received="a link",
            remedy="Copy the folder again from its source; a link may stand for the whole folder, not for parts of it.",
        )
    return verify_folder(directory)


def rotate_checkpoints(
    output: str | Path, *, keep: int, newest: int, protect: Collection[Path] = ()
) -> list[Path]:
    """Deletes all but the newest checkpoints. Call it only after the newest has been verified.

    Args:
        output: A run's output folder.
        keep: How many to keep, at least 1.
        newest: Step of the newest. Later ones, damaged and passed over when the run was resumed, do not count
            and stay until the run replaces or passes them.
        protect: Checkpoints to keep besides, such as the best one.

    Returns:
        The deleted folders.

    Raises:
        CheckpointError: The disk is failing.
    """
    kept = {path.resolve() for path in protect}
    deleted = []
    with disk_errors(Path(output), CheckpointError, lambda: 0):
        own = [path for step, path in list_checkpoints(output) if step <= newest]
        for path in own[: -max(keep, 1)]:
            if path.resolve() not in kept:
                # Renamed first, so that a crash half-way through deleting leaves no damaged checkpoint behind.
                doomed = path.parent / f"{_UNFINISHED}{path.name}"
                os.rename(path, doomed)
                shutil.rmtree(doomed)
                deleted.append(path)
    return deleted


def remove_unfinished(output: str | Path) -> list[Path]:
    """Clears away what a killed process left behind in a run's output folder.

    A folder that was moved aside to be replaced, and whose replacement never arrived, goes back to its place.

    Returns:
        The folders removed or put back.

    Raises:
        CheckpointError: The disk is failing.
    """
    handled = []
    with disk_errors(Path(output), CheckpointError, lambda: 0):
        for path in sorted(Path(output).glob(f"{_UNFINISHED}*")):
            if not path.is_dir():
                continue
            original = path.parent / path.name.removeprefix(_REPLACED)
            if path.name.startswith(_REPLACED) and not original.exists():
                os.rename(path, original)
            elif path.name.startswith((_REPLACED, *_OWN)):
                shutil.rmtree(path)
            else:
                continue
            handled.append(path)
    return handled


def _rename_over(temporary: Path, destination: Path) -> None:
    """Puts a finished folder in its place. POSIX renames onto empty folders only: an old one steps aside."""
    replaced = destination.parent / f"{_REPLACED}{destination.name}"
    if destination.exists():
        if replaced.exists():
            shutil.rmtree(replaced)
        os.rename(destination, replaced)
    try:
        os.rename(temporary, destination)
        _fsync(destination.parent)
        verify_checkpoint(destination)
    except BaseException:
        if destination.exists():
            os.rename(destination, temporary)
        if replaced.exists():
            os.rename(replaced, destination)
        raise
    if replaced.exists():
        shutil.rmtree(replaced)


def _check_replaceable(destination: Path) -> None:
    if destination.exists() and not (
        destination.is_dir() and ((destination / MANIFEST_NAME).is_file() or not any(destination.iterdir()))
    ):
        raise CheckpointError(
            str(destination),
            expected="a new or empty folder, or a checkpoint or model saved by climafuse",
            received="something else, which saving would delete",
            remedy="Choose another folder.",
        )


def _check_space(destination: Path, bytes_needed: int) -> None:
    free = shutil.disk_usage(destination.parent).free
    if free < bytes_needed:
        raise CheckpointError(
            str(destination),
            expected=f"{bytes_needed:,} bytes of free space",
            received=f"{free:,} bytes",
            remedy="Free space or give another output folder; what was saved before is untouched.",
        )


def _size(directory: Path) -> int:
    with suppress(OSError):  # only to say how much it was
        return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    return 0


def _fsync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder for syncing
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
