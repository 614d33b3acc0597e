"""Text of a file that somebody else may have made."""

from __future__ import annotations

import errno
import stat
from pathlib import Path


def read_text(path: Path) -> str:
    """Read a file of UTF-8 text, and nothing that only looks like a file: a pipe waits forever, a device never ends.

    Args:
        path: The file.

    Raises:
        ValueError: It is not UTF-8, or its name is none.
        OSError: It cannot be read.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "a pipe or a device, no file", str(path))
    return path.read_text(encoding="utf-8")
