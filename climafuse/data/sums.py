"""Over how long sums go: 6 mm in six hours and 6 mm in one are no one variable.

A file tells it by the bounds of its time axis or, where it has none and ``cell_methods`` states no interval, by its
time step. The last is no proof (hourly sums may have been taken at every sixth hour), so files that differ in it are
told to state the interval; that they agree on what they state is seen to where ``cell_methods`` are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from climafuse.errors import CanonicalizationError

# Months of 28 and 31 days are one interval, so are steps of 7 and 8 hours.
_ALIKE = 1.2


@dataclass(frozen=True, eq=False)
class SumLengths:
    """Over how long the sums of one file go.

    Args:
        where: File and variable, for errors.
        hours: [n] the lengths that are known; none where the file tells nothing.
        basis: What tells it.
    """

    where: str
    hours: np.ndarray
    basis: str


def sum_lengths(
    where: str, methods: str, times: np.ndarray, bounds: tuple[np.ndarray, np.ndarray] | None
) -> SumLengths:
    """What a file tells of the length of its sums.

    Args:
        where: File and variable, for errors.
        methods: Its ``cell_methods``.
        times: [T] its times, ascending: datetime64 or cftime dates.
        bounds: Begin [T] and end [T] of the interval of each time, likewise; None where the file has none.

    Returns:
        The lengths.
    """
    if bounds is not None:
        hours = np.abs(_hours(bounds[1] - bounds[0]))
        # Bounds without extent say nothing of a sum.
        return SumLengths(where, hours[hours > 0], "by its time bounds")
    steps = _hours(times[1:] - times[:-1])
    typical = np.median(steps) if len(steps) else 0.0
    regular = (steps < _ALIKE * typical) & (steps > typical / _ALIKE)
    if "interval:" in methods or regular.sum() * 2 <= len(steps):
        return SumLengths(where, np.empty(0), "")
    return SumLengths(where, np.array([typical]), "by its time step")


def check_sum_lengths(name: str, told: Sequence[SumLengths]) -> None:
    """Refuse sums over different intervals, in one file or in several.

    Args:
        name: Canonical name of the variable.
        told: What each file tells.

    Raises:
        CanonicalizationError: Two intervals differ by more than those of a calendar do.
    """
    told = [lengths for lengths in told if len(lengths.hours)]
    if not told:
        return
    short, long = min(told, key=lambda each: each.hours.min()), max(told, key=lambda each: each.hours.max())
    if long.hours.max() > _ALIKE * short.hours.min():
        raise CanonicalizationError(
            long.where,
            expected=f"sums over one interval: {short.hours.min():g} h {short.basis} in {short.where}",
            received=f"{long.hours.max():g} h {long.basis}",
            remedy=f"Open files whose {name} goes over different intervals one by one, or convert it to a rate "
            "first; if all sums go over one interval, state that in each file, as in cell_methods 'time: sum "
            "(interval: 1 hour)', and correct or drop time bounds that say otherwise.",
        )


def _hours(differences: np.ndarray[Any, Any]) -> np.ndarray:
    if differences.dtype.kind == "m":
        return np.asarray(differences / np.timedelta64(1, "h"), dtype=np.float64)
    return np.array([difference.total_seconds() / 3600 for difference in differences], dtype=np.float64)
