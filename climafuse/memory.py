"""How much memory a process has held. Imports nothing of the package."""

from __future__ import annotations

import sys


def peak_memory_gb() -> float:
    """The most memory this process has held resident so far, in 10⁹ bytes; 0 where the system cannot say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9  # bytes on macOS, KiB on Linux
