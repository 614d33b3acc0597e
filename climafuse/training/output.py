"""The output folder of a run: whose it is, and what of an earlier run has to go."""

from __future__ import annotations

import os
from pathlib import Path

from climafuse.errors import OutputError, TrainingError
from climafuse.training.checkpoint import list_checkpoints
from climafuse.training.config import OutputConfig


def check_output(output: OutputConfig) -> None:
    """Refuses an output folder in which a new run would mix with an earlier one.

    Raises:
        OutputError: It is no folder, or cannot be written to.
        TrainingError: It holds checkpoints, and may not be overwritten.
    """
    folder = Path(output.directory)
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise OutputError(
            output.directory,
            expected="a folder that can be written to",
            received=f"{nearest}, {'which is no folder' if not nearest.is_dir() else 'which cannot be'}",
            remedy="Choose another output.directory.",
        )
    earlier = list_checkpoints(output.directory)
    if earlier and not output.overwrite:
        raise TrainingError(
            output.directory,
            expected="an output folder without checkpoints of an earlier run",
            received=f"{len(earlier)} checkpoints, the newest {earlier[-1][1].name}",
            remedy="Resume that run, choose another output.directory, or set output.overwrite: true.",
        )
