"""Values out of JSON that may hold anything: what is not of the wanted type counts as not measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

LONGEST_TEXT = 2000  # characters


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number of hundreds of digits
        return None


def text(value: Any, longest: int = LONGEST_TEXT) -> str:
    """A text of bounded length; "" for what is neither text nor number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    words = str(value)
    return words if len(words) <= longest else f"{words[:longest]}… ({len(words):,} characters)"


def table(value: Any, *path: str) -> Mapping[str, Any]:
    """The object at a path of keys; empty where there is none."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def rows(value: Any) -> list[Any]:
    """A list; empty for anything else."""
    return list(value) if isinstance(value, list | tuple) else []


def interval(value: Any) -> tuple[float, float] | None:
    """Lower and upper end, or None."""
    ends = [number(end) for end in rows(value)]
    if len(ends) != 2 or ends[0] is None or ends[1] is None:
        return None
    return ends[0], ends[1]
