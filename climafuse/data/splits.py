"""Time-blocked splits with gaps: training | gap | validation | gap | test.

Weather persists for days and the ocean for months, so times drawn at random would leak the answer from
training into test. Blocks of time with a gap between them do not, provided a window with its history lies
wholly in one block.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np

from climafuse.data.times import TimeLike, as_time_axis, format_time, parse_time
from climafuse.errors import UsageError

SplitName = Literal["train", "validation", "test"]
SPLIT_NAMES: tuple[SplitName, ...] = get_args(SplitName)


@dataclass(frozen=True, eq=False)
class Splits:
    """Which steps of a time axis belong to which split.

    Args:
        train: [N] int64 indices, ascending: models are fitted to these, and statistics computed from them.
        validation: [N] int64: choices are made on these.
        test: [N] int64: figures come from these.
        dropped: [N] int64: in none, because they lie in a gap.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    dropped: np.ndarray = field(default_factory=lambda: np.array([], dtype=np.int64))

    def indices(self, name: SplitName) -> np.ndarray:
        """The steps of one split: [N] int64, ascending."""
        if name not in SPLIT_NAMES:
            raise UsageError(
                "split",
                expected=f"one of {', '.join(SPLIT_NAMES)}",
                received=name,
                remedy="Choose one of the splits.",
            )
        indices: np.ndarray = getattr(self, name)
        return indices

    def valid_times(self, name: SplitName, *, history: int = 1) -> np.ndarray:
        """Steps of a split at which a window can end with its whole history inside the split.

        Args:
            name: The split.
            history: Number of steps of the window.

        Returns:
            [N] int64, ascending; not empty.

        Raises:
            UsageError: The split is shorter than the history.
        """
        indices = self.indices(name)
        inside = np.all([np.isin(indices - back, indices) for back in range(max(history, 1))], axis=0)
        if not inside.any():
            raise UsageError(
                "history",
                expected=f"at most the {len(indices)} steps of the {name} split",
                received=history,
                remedy="Shorten the history, or make the split larger.",
            )
        return indices[inside]


def split_by_time(
    times: np.ndarray,
    *,
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
    gap: datetime.timedelta,
) -> Splits:
    """Cut a time axis into three blocks by shares of its steps.

    Args:
        times: [T] datetime64 or cftime dates, ascending.
        fractions: Shares of train, validation and test in the steps that are left after the gaps are dropped.
        gap: Least time between the last step of one block and the first of the next: days for weather, months
            for the ocean.

    Returns:
        The splits, none of them empty.

    Raises:
        UsageError: The shares or the gap make no sense, or leave a split empty.
    """
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UsageError(
            "fractions",
            expected="three shares above 0 that sum to 1, for train, validation and test",
            received=fractions,
            remedy="Use for example 0.6, 0.2, 0.2.",
        )
    _check_gap(gap)
    times = as_time_axis(times)
    # The gaps cost steps, and how many depends on where they fall: shrink what there is to share until it
    # fits.
    for usable in range(len(times), 2, -1):
        num_train = min(max(round(fractions[0] * usable), 1), usable - 2)
        num_both = round((fractions[0] + fractions[1]) * usable)
        num_validation = min(max(num_both - num_train, 1), usable - num_train - 1)
        validation_start = _first_from(times, num_train - 1, gap)
        validation_end = validation_start + num_validation
        if validation_end >= len(times):
            continue
        test_start = _first_from(times, validation_end - 1, gap)
        if len(times) - test_start >= usable - num_train - num_validation:
            return _blocks(times, num_train, validation_start, validation_end, test_start, gap)
    return _blocks(times, 0, 0, 0, len(times), gap)


def split_at(
    times: np.ndarray,
    *,
    validation: TimeLike,
    test: TimeLike,
    gap: datetime.timedelta,
) -> Splits:
    """Cut a time axis at two dates.

    Args:
        times: [T] datetime64 or cftime dates, ascending.
        validation: The first time of the validation split; what comes before, less the gap, is for training.
        test: The first time of the test split; validation ends a gap before it.
        gap: Least time between the last step of one block and the first of the next: days for weather, months
            for the ocean.

    Returns:
        The splits, none of them empty.

    Raises:
        UsageError: The dates or the gap make no sense, or leave a split empty.
    """
    _check_gap(gap)
    times = as_time_axis(times)
    validation_start = int(np.searchsorted(times, parse_time(validation, like=times, argument="validation")))
    test_start = int(np.searchsorted(times, parse_time(test, like=times, argument="test")))
    train_end = _last_until(times, validation_start, gap)
    return _blocks(times, train_end, validation_start, _last_until(times, test_start, gap), test_start, gap)


def split_by_periods(
    times: np.ndarray,
    periods: Mapping[str, tuple[TimeLike, TimeLike]],
    *,
    gap: datetime.timedelta = datetime.timedelta(0),
) -> Splits:
    """Pick each split by its first and last time.

    Args:
        times: [T] datetime64 or cftime dates, ascending.
        periods: Split → first and last time, both included; a last one given as a month or day includes all of it.
            They may follow one another in any order.
        gap: Least time between the last step of one split and the first of the next.

    Returns:
        The splits, none of them empty; steps in no period are dropped.

    Raises:
        UsageError: A split has no period or no step, or two are nearer to each other than the gap.
    """
    _check_gap(gap)
    if set(periods) != set(SPLIT_NAMES):
        raise UsageError(
            "periods",
            expected=f"a first and a last time for each of {', '.join(SPLIT_NAMES)}",
            received=", ".join(map(str, periods)) or "none",
            remedy="For example {train: [1979-01, 2004-12], validation: [2005-07, 2006-06], test: [2007-01, 2013-12]}.",
        )
    times = as_time_axis(times)
    found = {}
    for name, (first, last) in periods.items():
        start = np.searchsorted(times, parse_time(first, like=times, argument=f"periods: {name}"))
        stop = np.searchsorted(times, _end_of(last, times, f"periods: {name}"))
        found[name] = np.arange(int(start), int(stop))
        if not len(found[name]):
            span = f"{format_time(times[0])} to {format_time(times[-1])}" if len(times) else "no times"
            raise UsageError(
                f"periods: {name}",
                expected=f"a first time and a later last one, with steps of the fields between ({span})",
                received=f"{first} to {last}",
                remedy="Choose a period that the fields cover.",
            )
    order = sorted(found, key=lambda name: int(found[name][0]))
    for earlier, later in pairwise(order):
        here, there = found[earlier][-1], found[later][0]
        if there <= here or times[there] - times[here] < _as_step(times, gap):
            raise UsageError(
                "periods",
                expected=f"{later} to begin after the end of {earlier}, and no sooner than the gap of {gap} after it",
                received=f"{earlier} to {format_time(times[here])}, {later} from {format_time(times[there])}",
                remedy="Move one of them, or shorten the gap.",
            )
    used = np.concatenate(list(found.values()))
    return Splits(**found, dropped=np.setdiff1d(np.arange(len(times)), used))


def _end_of(last: TimeLike, times: np.ndarray, argument: str) -> Any:
    """The moment after a period that ends with `last`: after all of a month or a day that is given as such."""
    moment = parse_time(last, like=times, argument=argument)
    text = last.strip() if isinstance(last, str) else format_time(moment)
    if text.count("-") == 1:
        year, month = (int(part) for part in text.split("-"))
        return parse_time(f"{year + month // 12:04d}-{month % 12 + 1:02d}", like=times, argument=argument)
    length = datetime.timedelta(days=1) if len(text) <= len("2004-12-31") else datetime.timedelta(seconds=1)
    return moment + _as_step(times, length)


def _first_from(times: np.ndarray, last: int, gap: datetime.timedelta) -> int:
    """First step after `last` that is a gap away from it."""
    return max(int(np.searchsorted(times, times[last] + _as_step(times, gap))), last + 1)


def _last_until(times: np.ndarray, first: int, gap: datetime.timedelta) -> int:
    """One past the last step before `first` that is a gap away from it."""
    if first >= len(times):
        return first
    return min(int(np.searchsorted(times, times[first] - _as_step(times, gap), side="right")), first)


def _as_step(times: np.ndarray, gap: datetime.timedelta) -> Any:
    return gap if times.dtype == object else np.timedelta64(gap).astype("timedelta64[s]")


def _blocks(
    times: np.ndarray,
    train_end: int,
    validation_start: int,
    validation_end: int,
    test_start: int,
    gap: datetime.timedelta,
) -> Splits:
    steps = np.arange(len(times))
    train, validation, test = steps[:train_end], steps[validation_start:validation_end], steps[test_start:]
    if not (len(train) and len(validation) and len(test)):
        span = f" from {format_time(times[0])} to {format_time(times[-1])}" if len(times) else ""
        raise UsageError(
            "splits",
            expected="at least one step in each of train, validation and test",
            received=f"{len(train)}, {len(validation)}, {len(test)} of {len(times)} steps{span}, gap: {gap}",
            remedy="Use more times, a shorter gap, or other dates.",
        )
    return Splits(train, validation, test, np.setdiff1d(steps, np.concatenate([train, validation, test])))


def _check_gap(gap: datetime.timedelta) -> None:
    if gap < datetime.timedelta(0):
        raise UsageError(
            "gap", expected="zero or more", received=gap, remedy="Give the gap as a length of time."
        )
