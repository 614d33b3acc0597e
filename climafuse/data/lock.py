"""One process at a time writes to a place."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from climafuse.errors import OutputError, UsageError


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a lock; the system lets it go with the process, however that ends.

    Args:
        path: Of the lock, a file in the folder that is written to; removed at the end. The folder is made, and
            removed if it is left empty.

    Raises:
        UsageError: Another process holds it.
        OutputError: The folder cannot be written, or its file system has no locks.
    """
    made = not os.path.exists(path.parent)  # False, too, for what cannot be a name
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
