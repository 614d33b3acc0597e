"""A case measured in a process of its own, so that its peak of memory is its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from climafuse.errors import TrainingError


def measure(
    module: str, spec: dict[str, Any], *, place: Path | None = None, limit: float | None = None
) -> dict[str, Any]:
    """Have a module measure a case.

    Args:
        module: Run with two files: the specification, and one for what it finds.
        spec: The case, as JSON.
        place: Folder for these; None for that of temporary files.
        limit: Seconds it may take; None for any.

    Returns:
        What it has found.

    Raises:
        TrainingError: It failed, was killed or took too long.
    """
    with tempfile.TemporaryDirectory(dir=place) as folder:
        given, out = Path(folder) / "spec.json", Path(folder) / "found.json"
        given.write_text(json.dumps(spec), encoding="utf-8")
        try:
            ended = subprocess.run(
                [sys.executable, "-m", module, str(given), str(out)], check=False, timeout=limit
            )
        except subprocess.TimeoutExpired:
            raise _failure(module, f"none within {limit:g} s") from None
        if ended.returncode < 0:
            raise _failure(module, f"its process was ended by {signal.Signals(-ended.returncode).name}")
        if ended.returncode:
            raise _failure(module, f"its process ended with {ended.returncode}, see above")
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return found


def _failure(module: str, received: str) -> TrainingError:
    return TrainingError(
        module,
        expected="a measurement of the case",
        received=received,
        remedy="Free memory if it was killed for want of it. Cases measured before are kept: the same command goes on.",
    )
