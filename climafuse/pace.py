"""Telling progress, but not too often. Imports nothing of the package."""

from __future__ import annotations

import time
from collections.abc import Callable


def every(seconds: float, tell: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """Make a function of (done, total) that passes on what it is told at most every so many seconds.

    Args:
        seconds: How long it is silent after each time, and at the beginning.
        tell: What is told.
    """
    last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            tell(done, total)

    return progress
