"""How much memory a process holds and may still take, and what running out of it looks like.

Imports nothing of the package.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

PROCESS, SYSTEM, CONTROL_GROUPS = Path("/proc/self"), Path("/proc/meminfo"), Path("/sys/fs/cgroup")
# What torch and its libraries say. torch.OutOfMemoryError, of a GPU, is a RuntimeError, too.
_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")


@dataclass(frozen=True)
class MemoryState:
    """Memory of a process on a system that kills who takes too much, in bytes.

    Args:
        resident: What the process holds, mapped files included.
        peak: The most it has held so far.
        room: What it may still take: of the machine's memory and of the limits of its control groups.
        total: The smallest of these limits.
    """

    resident: int
    peak: int
    room: int
    total: int


def peak_memory_gb() -> float:
    """The most memory this process has held resident so far, in 10⁹ bytes; 0 where the system cannot say."""
    return _peak() / 1e9


def memory_state() -> MemoryState | None:
    """Look at the memory of this process now: a few small files of Linux, some 100 µs. None on other systems.

    Files that the kernel has read ahead or kept count as room, weights that the process has mapped do not: it would
    give them up rather than kill anybody, and read them from the disk again and again.
    """
    try:
        resident = int((PROCESS / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        system = _table(SYSTEM, unit=1024)
        total = system["MemTotal:"]
        room = min(system["MemAvailable:"], total - resident)
        for limit, used, statistics, idle in _limits():
            held = int(used.read_text()) - _table(statistics).get(idle, 0)
            room = min(room, limit - held, limit - resident)
            total = min(total, limit)
    except (OSError, ValueError, IndexError, KeyError):
        return None
    return MemoryState(resident, max(_peak(), resident), max(room, 0), total)


def out_of_memory(error: BaseException) -> str | None:
    """What an error says, in one line, if it is that memory ran out, on a GPU or not; else None."""
    text = str(error)
    if not isinstance(error, MemoryError) and not (
        isinstance(error, RuntimeError) and any(sign.lower() in text.lower() for sign in _SIGNS)
    ):
        return None
    return (text.strip().splitlines() or [type(error).__name__])[0][:300]


def release_memory() -> None:
    """Give back what is no longer used: to the allocator, by it, and to the system."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # no glibc
            ctypes.CDLL(None).malloc_trim(0)


def in_halves(items: Sequence[T], work: Callable[[Sequence[T]], None]) -> int:
    """Do work on items all at once, or, where memory runs out, on the first half and then on the other.

    Args:
        items: One item or more.
        work: Called with parts of them, in order; called again with parts of a part that it failed on.

    Returns:
        Into how many parts they were cut at most, 1 where all fitted.

    Raises:
        Exception: What `work` raises otherwise, and out of memory on a single item.
    """
    try:
        work(items)
        return 1
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error) is None or len(items) < 2:
            raise
    release_memory()  # out of the handler: what the failed call held is let go of
    middle = (len(items) + 1) // 2
    return 2 * max(in_halves(items[:middle], work), in_halves(items[middle:], work))


def _peak() -> int:
    # Of this program alone: `ru_maxrss` begins with what its parent held when it was started.
    with suppress(OSError), (PROCESS / "status").open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)  # bytes on macOS, KiB on Linux


# Of each version of control groups: the limit, what is used, and of that the idle pages of files.
_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


@functools.cache
def _limits() -> tuple[tuple[int, Path, Path, str], ...]:
    """Limits of the control groups of this process: bytes, and where it is told how much of them is used.

    Reference: "Control Group v2" and "Memory Resource Controller" (v1) of the Linux kernel documentation.
    """
    found = []
    for line in (PROCESS / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in _FILES:
            continue
        limit, used, idle = _FILES[controllers]
        root = CONTROL_GROUPS / controllers
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            # In a container the path may be that of the machine, of which only the root can be seen.
            with suppress(OSError, ValueError):  # "max", or no such file
                most = int((folder / limit).read_text())
                if most < 1 << 60:  # version 1 says so where there is none
                    found.append((most, folder / used, folder / "memory.stat", idle))
            if folder == root:
                break
    return tuple(found)


def _table(path: Path, unit: int = 1) -> dict[str, int]:
    """A file of names and numbers."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) * unit for words in lines}
