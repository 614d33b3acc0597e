"""The output folder of a run: whose it is, and what of an earlier run has to go."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from climafuse.errors import OutputError, TrainingError
from climafuse.training.checkpoint import disk_errors, list_checkpoints
from climafuse.training.config import OutputConfig


def check_output(output: OutputConfig) -> None:
    """Refuses an output folder in which a new run would mix with an earlier one.

    Raises:
        OutputError: It is no folder, or cannot be written to.
        TrainingError: It holds checkpoints, and may not be overwritten.
    """
    nearest = _nearest(Path(output.directory))
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


def check_room(output: OutputConfig, checkpoint: int, *, resumed: bool) -> None:
    """Refuses a run whose first checkpoint would not fit on the disk.

    Args:
        output: The section of the run.
        checkpoint: Bytes of a checkpoint.
        resumed: Whether it goes on from one; a run that begins first deletes those which it may overwrite.

    Raises:
        OutputError: There is no room for it.
    """
    with disk_errors(Path(output.directory), OutputError, lambda: checkpoint):
        free = shutil.disk_usage(_nearest(Path(output.directory))).free
        if not resumed:
            earlier = [path for _, folder in list_checkpoints(output.directory) for path in folder.rglob("*")]
            free += sum(path.stat().st_size for path in earlier if path.is_file())
    if free < checkpoint:
        most = output.keep_checkpoints + 1  # the best one, too
        raise OutputError(
            output.directory,
            expected=f"room for a checkpoint of {checkpoint / 1e9:.3g} GB, and for {most} as the run goes on",
            received=f"{free / 1e9:.3g} GB free",
            remedy="Make room, or choose another output.directory.",
        )


def _nearest(folder: Path) -> Path:
    """The folder, or of those that it would be made in the nearest that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
