"""Where a command may write what it found: over nothing but what the same command may have written before.

What it reads may be given by a pattern, by a link, in the configuration of a run, or be a part of a store or of a
language model. So it is not asked which files those are, but what is in the one that would be lost.
"""

from __future__ import annotations

import os
import re
from enum import Enum
from pathlib import Path

from climafuse.data.files import check_destination
from climafuse.errors import OutputError, UsageError
from climafuse.manifest import MANIFEST_NAME

EVALUATION = "evaluation"  # folder of transcripts, figures and controls
DEMO_FIGURES = "metrics.json"  # of a run, by `scripts/demo`; they look like any other figures
_HEAD = 4096  # bytes


class Result(Enum):
    """What a command writes: in words, and how a file of it begins."""

    FIGURES = "figures of an evaluation", rb'\{\s*"format":\s*\d+,\s*"checkpoint":'
    PAGE = "a page of HTML", rb"(?i:<!doctype html)"
    PICTURE = "a picture", rb"\x89PNG\r\n|%PDF-|RIFF....WEBP|(?:<\?xml[^>]*>\s*)?<(?:!DOCTYPE )?svg\b"
    PAIRS = "climate-text pairs", rb'\{"time":|"time","place","prompt"|PAR1'


def check_result(path: Path, option: str, result: Result) -> None:
    """Refuse a path for what a command finds, before the work.

    Args:
        path: Where the file shall be.
        option: Who says so, for the error.
        result: What it will hold.

    Raises:
        UsageError: It is in the folder of a model, of a checkpoint, of a store or of evaluations, or another file is
            there that would be lost.
        OutputError: It cannot be written there.
    """
    check_destination(path)
    place = Path(os.path.realpath(path))  # of a link that leads to itself, too
    for folder in place.parents:
        if _is_whole(folder) or (folder.name == EVALUATION and _is_run(folder.parent)):
            raise _refusal(path, option, result, f"one in {folder.name}/, which is kept as it is")
    if place.name == DEMO_FIGURES and place.exists() and _is_run(place.parent):
        raise _refusal(path, option, result, f"{place.name} of a run")
    if place.exists() and not _may_be(place, result):
        raise _refusal(path, option, result, "which holds something else")


def _refusal(path: Path, option: str, result: Result, received: str) -> UsageError:
    return UsageError(
        option,
        expected=f"a file that is not there yet, or {result.value[0]}, whose place is taken",
        received=f"{path}, {received}",
        remedy="Choose another file: what is there would be lost or damaged.",
    )


def _may_be(place: Path, result: Result) -> bool:
    """Whether a file begins as such a result does, or is empty; no pipe or device is."""
    if not place.is_file():
        return False
    try:
        with place.open("rb") as file:
            head = file.read(_HEAD).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError as error:
        raise OutputError(
            str(place),
            expected="a file that can be read, to see what would be lost",
            received=error.strerror or str(error),
            remedy="Choose another file.",
        ) from error
    return not head or re.match(result.value[1], head, re.DOTALL) is not None


def _is_whole(folder: Path) -> bool:
    """Whether a manifest answers for what is in a folder: a model, a checkpoint or a training store."""
    return (folder / MANIFEST_NAME).is_file() and any(
        (folder / name).is_file() for name in ("config.json", "statistics.json")
    )


def _is_run(folder: Path) -> bool:
    return any(_is_whole(child) for child in (folder / "model", *folder.glob("checkpoint-*")))
