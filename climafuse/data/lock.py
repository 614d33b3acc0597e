"""One process at a time writes to a place, and what a process uses is not removed by another."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from climafuse.errors import OutputError, UsageError


@contextlib.contextmanager
def alone(path: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Hold a lock; the system lets it go with the process, however that ends.

    Args:
        path: Of the lock, a file in the folder that is written to; removed at the end. The folder is made, and
            removed if it is left empty.
        wait: Seconds to wait for another process that holds it.

    Raises:
        UsageError: Another process holds it.
        OutputError: The folder cannot be written, or its file system has no locks.
    """
    made = not os.path.exists(path.parent)  # False, too, for what cannot be a name
    deadline = time.monotonic() + wait
    with contextlib.ExitStack() as stack:
        while True:
            file = stack.enter_context(_open(path))
            try:
                free = _lock(file)
            except OSError as error:  # some network file systems cannot
                _clear(path, folder=made)
                raise OutputError(
                    str(path.parent),
                    expected="a place where files can be locked, so that two processes cannot spoil it",
                    received=error.strerror or str(error),
                    remedy="Choose a folder on another file system.",
                ) from error
            if not free and time.monotonic() < deadline:
                file.close()
                time.sleep(0.02)
                continue
            if not free:
                raise UsageError(
                    str(path.parent),
                    expected="a folder that no other process is writing",
                    received="a process that writes it now",
                    remedy="Wait until it is done, or choose another destination.",
                )
            if _is(file, path):
                break
            # The one before removed the file in between: this lock would keep nobody out.
        try:
            yield
        finally:
            if _is(file, path):
                _clear(path, folder=made)


def in_use(path: Path) -> IO[bytes]:
    """Open a file to read; while it is open, `remove_unused` of other processes leaves it.

    Args:
        path: The file.

    Raises:
        OSError: It cannot be opened.
    """
    file = path.open("rb")
    with contextlib.suppress(
        ImportError, OSError
    ):  # no locks here: then nobody can tell, and nobody removes it
        import fcntl

        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return file


@contextlib.contextmanager
def folder_in_use(path: Path) -> Iterator[None]:
    """While this lasts, `remove_unused` of other processes leaves a folder.

    Args:
        path: The folder; it may get another name meanwhile.
    """
    descriptor = None
    with contextlib.suppress(ImportError, OSError):  # as in `in_use`
        import fcntl

        descriptor = os.open(path, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def remove_unused(path: Path) -> bool:
    """Remove a file or folder that no process has open through `in_use` or `folder_in_use`.

    Args:
        path: The file or folder.

    Returns:
        Whether it is gone.
    """
    descriptor = None
    try:
        import fcntl

        descriptor = os.open(path, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        return True
    except (ImportError, OSError):  # in use, not ours, or without locks nobody can tell
        return False
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return True


def _clear(path: Path, *, folder: bool) -> None:
    path.unlink(missing_ok=True)
    if folder:
        with contextlib.suppress(OSError):  # not empty, or gone
            path.parent.rmdir()


def _is(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _open(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a", encoding="ascii")
    except OSError as error:
        raise OutputError(
            str(path.parent),
            expected="a folder that can be written",
            received=error.strerror or str(error),
            remedy="Choose another place, or make room; nothing was left half-written.",
        ) from error


def _lock(file: IO[str]) -> bool:
    try:
        import fcntl
    except ImportError:  # not a POSIX system: two runs at once are the user's to avoid
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
