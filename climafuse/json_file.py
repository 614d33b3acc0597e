"""JSON that somebody else may have written: one object, or a `ValueError` for whatever else there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from climafuse.errors import CheckpointError
from climafuse.text_file import read_text


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: The file.

    Returns:
        The object.

    Raises:
        ValueError: It is not UTF-8, no JSON, nested without end, or no object.
        OSError: It cannot be read.
    """
    try:
        content = json.loads(read_text(path))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__}, no object")
    return content


def read_record(path: Path) -> dict[str, Any]:
    """Read what a run may have left: the object, empty where there is no such file.

    Args:
        path: The file.

    Raises:
        CheckpointError: It holds no JSON object.
    """
    if not path.exists():
        return {}
    try:
        return read_object(path)
    except (ValueError, OSError) as error:
        raise CheckpointError(
            str(path),
            expected="a JSON object",
            received=f"{type(error).__name__}: {error}",
            remedy="Write it anew, or delete it: what it told then counts as not measured.",
        ) from error
