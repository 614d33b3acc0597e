"""What a run keeps for itself: nothing else is written over it, or between it."""

from __future__ import annotations

from pathlib import Path

from climafuse.errors import UsageError
from climafuse.manifest import MANIFEST_NAME
from climafuse.training.callbacks import LOG_FILE
from climafuse.training.trained_on import RECORD_FILE
from climafuse.training.trainer import CONFIG_FILE

EVALUATION = "evaluation"  # folder of transcripts, figures and controls
_BESIDE = frozenset({RECORD_FILE, LOG_FILE, CONFIG_FILE, "metrics.json", "result.json"})


def check_not_of_run(path: Path, option: str) -> None:
    """Refuse a path for figures or a page that is a run's own, whichever run's, before the work.

    Args:
        path: Where a file shall be.
        option: Who says so, for the error.

    Raises:
        UsageError: It is in the folder of a model, of a checkpoint or of evaluations, or what a run tells of itself.
    """
    place = path.expanduser().resolve()
    for folder in place.parents:
        if _is_model(folder) or (folder.name == EVALUATION and _is_run(folder.parent)):
            raise _refusal(path, option, f"one in {folder.name}/, which a run keeps for itself")
    if place.name in _BESIDE and place.exists() and _is_run(place.parent):
        raise _refusal(path, option, f"{place.name} of a run")


def _refusal(path: Path, option: str, received: str) -> UsageError:
    return UsageError(
        option,
        expected="a file that is no run's own",
        received=f"{path}, {received}",
        remedy="Choose another file: what is there would be lost, or be damaged.",
    )


def _is_model(folder: Path) -> bool:
    return (folder / MANIFEST_NAME).is_file() and (folder / "config.json").is_file()


def _is_run(folder: Path) -> bool:
    return any(_is_model(child) for child in (folder / "model", *folder.glob("checkpoint-*")))
