"""Files and folders that appear whole or not at all, and where those go that are kept between runs."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from climafuse.data.lock import folder_in_use, remove_unused
from climafuse.errors import ClimafuseError, OutputError, is_disk_error

YOUNG = 5.0  # seconds: a folder may have been made and not be in use yet
HOLE = 4096  # bytes; what file systems keep or leave out as one


def cache_directory() -> Path:
    """Where climafuse keeps what it fetched: `CLIMAFUSE_HOME`, else `climafuse` in the XDG cache directory."""
    home = os.environ.get("CLIMAFUSE_HOME")
    if home:
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "climafuse"


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str], *, size: int = 0) -> Iterator[Path]:
    """Write a file under another name, then rename it: readers see the old file or the new one, never a part.

    Args:
        path: Where the file shall be; its folder is made.
        size: Its bytes, where they are known beforehand, for the error.

    Yields:
        The temporary path to write to, beside the final one. Removed if the block raises.

    Raises:
        OutputError: It cannot be written.
    """
    path = Path(path)
    temporary = _beside(path)
    with _writing(path, size):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Fill a folder under another name, then rename it. The final path must not exist.

    What a process that was killed has left half filled beside it is removed.

    Args:
        path: Where the folder shall be; its parent is made.

    Yields:
        The temporary folder to fill, empty, beside the final one. Removed if the block raises.

    Raises:
        OutputError: It cannot be written.
    """
    path = Path(path)
    temporary = _beside(path)
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        temporary.mkdir()
        try:
            with folder_in_use(temporary):
                yield temporary
                for folder, _, names in os.walk(temporary):
                    for name in names:
                        sync(Path(folder, name))
                    sync(Path(folder))
                temporary.rename(path)
            sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def check_destination(path: str | os.PathLike[str]) -> None:
    """Refuse a path that `whole_file` could not write, before the work whose result shall go there.

    Nothing is made: what fills the disk, or changes meanwhile, is found when it is written.

    Args:
        path: Where the file shall be.

    Raises:
        OutputError: It is a folder, lies inside a file or where nothing may be written, or its name is too long.
    """
    path = Path(path)
    with _writing(path):
        if path.is_dir():
            raise _refusal(errno.EISDIR, path)
        with contextlib.suppress(FileNotFoundError):
            _beside(path).lstat()  # too long a name, or one inside of a file
        folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
        if not folder.is_dir():
            raise _refusal(errno.ENOTDIR, folder)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise _refusal(errno.EACCES, folder)


def _refusal(code: int, path: Path) -> OSError:
    return OSError(code, os.strerror(code), str(path))


def write_sparse(path: Path, content: memoryview) -> None:
    """Write a file and hand it over to the disk. Stretches of zeros become holes, which take no room there.

    Fields such as snow or sea ice are zero over most of the globe. The content is the same for every reader.

    Args:
        path: The file, replaced if it is there.
        content: Bytes.
    """
    values = np.frombuffer(content, dtype=np.uint8)
    whole = len(values) // HOLE * HOLE
    filled = np.asarray(values[:whole].reshape(-1, HOLE).view(np.uint64).any(axis=1))
    edges = np.flatnonzero(np.diff(filled)) + 1
    with path.open("wb") as file:
        for start, end in pairwise([0, *edges.tolist(), len(filled)]):
            if end > start and filled[start]:
                file.seek(start * HOLE)
                file.write(content[start * HOLE : end * HOLE])
        file.seek(whole)
        file.write(content[whole:])
        file.truncate(len(values))
        file.flush()
        os.fsync(file.fileno())


class RandomFile:
    """A file that is read here and there, and open as long as this object lives.

    Not a memory map: what is mapped counts as memory of the process, each new map costs page faults, and a file that
    was cut short ends the process.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        if hasattr(os, "posix_fadvise"):  # nothing but what is asked for: a system may read megabytes ahead
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read_into(self, values: np.ndarray, position: int) -> bool:
        """Fill an array from a position on; False where the file ends before."""
        if hasattr(os, "preadv"):
            return os.preadv(self._descriptor, [values.data], position) == values.nbytes
        os.lseek(self._descriptor, position, os.SEEK_SET)
        content = os.read(self._descriptor, values.nbytes)
        if len(content) < values.nbytes:
            return False
        values[...] = np.frombuffer(content, values.dtype).reshape(values.shape)
        return True

    def will_need(self, position: int, length: int) -> None:
        """Have a part read from the disk while something else is done, where the system can."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, position, length, os.POSIX_FADV_WILLNEED)


def sync(path: Path) -> None:
    """Hand a file or folder over to the disk, so that a power cut after a rename finds it filled."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _writing(path: Path, size: int = 0) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if isinstance(error, ClimafuseError) or not is_disk_error(error):
            raise
        raise OutputError(
            str(path),
            expected=f"a place that can be written, with room {f'for {size:,} bytes' if size else 'on the disk'}",
            received=getattr(error, "strerror", None) or str(error),
            remedy="Choose another place, or make room; nothing was left half-written.",
        ) from error


def _remove_abandoned(path: Path) -> None:
    """Remove folders that were to be this one, and that no process fills any more: they may be many gigabytes."""
    for folder in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if folder.is_dir() and time.time() - folder.stat().st_ctime > YOUNG:
                remove_unused(folder)


def _beside(path: Path) -> Path:
    # The same folder, so that the rename stays within one file system; hidden and random, so that two runs
    # never meet.
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
