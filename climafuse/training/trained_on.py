"""What a model was trained on, as its folder tells: `data.json`, which travels with the weights.

It is written into every checkpoint and every model of a run, so that an interrupted run and a copied folder know it,
too. Runs of versions before it have it in `run.json` beside the model only, and that only once they had ended; it tells
of what the run has saved, not of any other weights that somebody has put there. Where neither tells, nobody can say
whether some time was in training, and nobody shall.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from climafuse.data.splits import SPLIT_NAMES
from climafuse.data.times import parse_label
from climafuse.errors import CheckpointError, UsageError
from climafuse.json_file import read_record

DATA_FILE, RECORD_FILE = "data.json", "run.json"
_SAVED_BY_A_RUN = re.compile(r"model|checkpoint-\d+")  # names of folders
NOT_KNOWN = (
    f"it is not known whether these times were in training: neither {DATA_FILE} beside the weights nor {RECORD_FILE} "
    "of the run tells"
)


@dataclass(frozen=True)
class TrainedOn:
    """What a model was trained on. Where nothing tells, all is empty.

    Args:
        splits: First and last time of each split that has any, as text.
        identity: SHA-256 by what it is of, see `identity.identify`.
        contents: SHA-256 of what is asked about each split, see `identity.identify_split`.
    """

    splits: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    identity: Mapping[str, str] = field(default_factory=dict)
    contents: Mapping[str, str] = field(default_factory=dict)

    @property
    def seen(self) -> list[tuple[str, str]]:
        """First and last of the times that were learned from, and of those the best step was chosen by."""
        return [self.splits[name] for name in ("train", "validation") if name in self.splits]

    def to_dict(self) -> dict[str, Any]:
        """As `data.json` and `run.json` hold it."""
        return {
            "splits": {name: list(span) for name, span in self.splits.items()},
            "identity": {**self.identity, "splits": dict(self.contents)},
        }

    def write(self, folder: Path) -> None:
        """Write `data.json` into a folder of weights."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"
        (folder / DATA_FILE).write_text(text, encoding="utf-8")


def read_trained_on(folder: Path) -> TrainedOn:
    """Read what a model was trained on.

    Args:
        folder: Of the model, or of a checkpoint.

    Returns:
        What `data.json` in it tells, else `run.json` beside it where it is a folder that the run has saved; empty where
        there is neither.

    Raises:
        CheckpointError: The file is damaged.
    """
    path, own = folder / DATA_FILE, folder.resolve()
    if not path.exists() and _SAVED_BY_A_RUN.fullmatch(own.name):
        path = own.parent / RECORD_FILE
    content = read_record(path)
    try:
        identity = dict(_table(content, "identity"))
        contents = _hashes(identity, "splits", of="identity")
        identity.pop("splits", None)
        return TrainedOn(_splits(content), _hashes({"identity": identity}, "identity"), contents)
    except (ValueError, UsageError) as error:
        raise CheckpointError(
            str(path),
            expected="first and last time of each split, and SHA-256 by name, as a run writes them",
            received=str(error) if isinstance(error, ValueError) else f"{error.received}, no time",
            remedy="It is damaged: copy it again from its source.",
        ) from error


def _splits(content: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    splits: dict[str, tuple[str, str]] = {}
    for name, span in _table(content, "splits").items():
        if name not in SPLIT_NAMES or not isinstance(span, list) or len(span) != 2:
            raise ValueError(f"{name!r:.40} {span!r:.80} in splits")
        first, last = (parse_label(end if isinstance(end, str) else "", argument=name) for end in span)
        if str(first) > str(last):
            raise ValueError(f"{name} {span!r:.80} in splits, which ends before it begins")
        splits[name] = (span[0], span[1])
    if splits and "train" not in splits:
        raise ValueError("splits without train")
    return splits


def _hashes(content: Mapping[str, Any], key: str, *, of: str = "") -> dict[str, str]:
    found = _table(content, key)
    for name, value in found.items():
        if not isinstance(value, str):
            raise ValueError(f"{name!r:.40} {value!r:.80} in {of + '.' if of else ''}{key}")
    return dict(found)


def _table(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = content.get(key, {})
    if not isinstance(found, dict):
        raise ValueError(f"{found!r:.80} for {key}")
    return found
