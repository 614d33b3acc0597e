"""What a study leaves in its folder, read strictly: others may have written or cut it.

results.json          all that was found, for tables and pictures
runs/ID/result.json   one run that is done
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from climafuse.errors import CheckpointError
from climafuse.json_file import read_object
from climafuse.json_values import number
from climafuse.scaling.study import FORMAT

RESULT_FILE, RESULTS_FILE = "result.json", "results.json"
# What tables, pictures and the runner look up; `float` stands for any finite number.
_RUN: dict[str, type] = {"id": str, "label": str, "settings": dict, "status": str, "seconds": float}
_BY_STATUS: dict[str, dict[str, type]] = {"finished": {"figures": dict}, "failed": {"why": str}}
_RESULTS: dict[str, type] = {"study": dict, "num_planned": float, "date": str, "machine": dict, "runs": list}
_STUDY: dict[str, type] = {"name": str, "question": str, "metric": str, "goal": str, "budget": dict}
_MACHINE: dict[str, type] = {"cores": float, "processor": str}


def read_results(folder: str | Path) -> dict[str, Any]:
    """Read what a study has found so far.

    Args:
        folder: Of the study.

    Raises:
        CheckpointError: The folder holds no results, damaged ones, or others than this version writes.
    """
    path = Path(folder) / RESULTS_FILE
    try:
        results = _read(path)
        _check_format(results)
        _check(results, _RESULTS)
        _check(results["study"], _STUDY, "study")
        _check_budget(results["study"]["budget"])
        _check(results["machine"], _MACHINE, "machine")
        for place, record in enumerate(results["runs"]):
            _check_run(record, f"runs[{place}]")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            str(path),
            expected=f"results of a study, format {FORMAT}",
            received=str(error),
            remedy="If it is damaged, delete it: climafuse scale run STUDY.yaml writes it from what its runs have left."
            if path.is_file()
            else "Run the study first: climafuse scale run STUDY.yaml.",
        ) from error
    return results


def read_result(path: Path) -> dict[str, Any] | None:
    """Read the record of one run.

    Args:
        path: `result.json` in the folder of the run.

    Returns:
        None if it is of another format or another run.

    Raises:
        CheckpointError: It is damaged.
    """
    try:
        record = _read(path)
        if record.get("format") != FORMAT and isinstance(record.get("format"), int):
            return None
        _check_format(record)
        _check_run(record)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            str(path),
            expected=f"the record of a run, format {FORMAT}",
            received=str(error),
            remedy="Delete it: the run is then taken up again from what its folder holds.",
        ) from error
    return record if record["id"] == path.parent.name else None


def _read(path: Path) -> dict[str, Any]:
    content = read_object(path)
    json.dumps(content, ensure_ascii=False).encode()  # a ValueError if a text is none
    return content


def _check_format(content: Mapping[str, Any]) -> None:
    if content.get("format") != FORMAT:
        raise ValueError(f"format {content.get('format')}")


def _check_run(record: Any, at: str = "") -> None:
    if not isinstance(record, dict):
        raise ValueError(f"{at} is no object")
    _check(record, _RUN, at)
    if record["status"] not in _BY_STATUS:
        raise ValueError(f"{_under(at, 'status')} is neither {' nor '.join(_BY_STATUS)}")
    _check(record, _BY_STATUS[record["status"]], at)


def _check_budget(budget: Mapping[str, Any]) -> None:
    for unit in ("seconds", "steps"):
        if budget.get(unit) is not None:
            _check(budget, {unit: float}, "study.budget")
        elif unit not in budget:
            raise ValueError(f"no study.budget.{unit}")


def _check(content: Mapping[str, Any], kinds: Mapping[str, type], at: str = "") -> None:
    for key, kind in kinds.items():
        if key not in content:
            raise ValueError(f"no {_under(at, key)}")
        fits = number(content[key]) is not None if kind is float else isinstance(content[key], kind)
        if not fits:
            raise ValueError(f"{_under(at, key)} is of another type, {type(content[key]).__name__}")


def _under(at: str, key: str) -> str:
    return f"{at}.{key}" if at else key
