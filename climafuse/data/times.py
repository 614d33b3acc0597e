"""Times: read from text, found on a time axis, and counted in days. UTC throughout, to the second.

An axis is either ``datetime64[s]`` (the Gregorian calendar) or an object array of cftime dates (any other
calendar).
"""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import cftime
import numpy as np

from climafuse.errors import OutOfRangeError, UsageError

# A time as a user may give it. Text is ISO 8601, at least year and month: "1997-12", "2026-03-25T06:00Z".
TimeLike: TypeAlias = "str | np.datetime64 | datetime.datetime | cftime.datetime | OtherDate"

_ISO = re.compile(
    r"(?P<year>\d{4})-(?P<month>\d{1,2})(?:-(?P<day>\d{1,2})"
    r"(?:[T ](?P<hour>\d{1,2})(?::?(?P<minute>\d{2})(?::?(?P<second>\d{2})(?:\.0*)?)?)?"
    r"(?P<zone>Z|[+-]\d{2}(?::?\d{2})?)?)?)?"
)
_DAYS_360 = np.array([cftime.datetime(1970, 1, 1, calendar="360_day")], dtype=object)
_OTHER_CALENDAR = 2**60
_REAL_CALENDARS = ("standard", "gregorian", "proleptic_gregorian")


def as_time_axis(values: Any) -> np.ndarray:
    """Times as the rest of the package keeps them.

    Args:
        values: [T] datetime64 of any unit, or cftime objects.

    Returns:
        [T] datetime64[s], or object array of cftime dates.
    """
    times = np.atleast_1d(np.asarray(values))
    return times if times.dtype == object else times.astype("datetime64[s]")


def parse_time(value: TimeLike, *, like: np.ndarray | None = None, argument: str = "time") -> Any:
    """One time, read from text or a date object, in the calendar of a time axis.

    Dates keep their label between calendars: 15 March of the text is 15 March of the axis. An offset from UTC
    in the text is taken off; text without one is UTC.

    Args:
        value: ISO 8601 text, ``datetime64``, ``datetime`` or cftime date.
        like: [T] the axis the time will be looked up on; None for the Gregorian calendar.
        argument: What to call the value in an error.

    Returns:
        ``datetime64[s]``, or a cftime date where the axis holds cftime dates.

    Raises:
        UsageError: The text is no date, or the calendar has no such date.
    """
    other_calendar = like is not None and like.dtype == object and len(like) > 0
    if isinstance(value, np.datetime64) and not other_calendar and not np.isnat(value):
        return value.astype("datetime64[s]")
    year, month, day, hour, minute, second, offset = _fields_of(value, argument)
    try:
        if like is not None and other_calendar:
            date = cftime.datetime(year, month, day, hour, minute, second, calendar=like[0].calendar)
            return date - offset
        gregorian = datetime.datetime(year, month, day, hour, minute, second) - offset
    except (ValueError, OverflowError) as error:
        raise _no_date(value, argument) from error
    return np.datetime64(gregorian, "s")


def latest_time(value: TimeLike, *, like: np.ndarray, argument: str = "time") -> Any:
    """One time in the calendar of a time axis; where that has no such date, the last second before it.

    Args:
        value: As in `parse_time`.
        like: Likewise.
        argument: Likewise.

    Raises:
        UsageError: The text is a date of no calendar, or the calendar has none in its month before it.
    """
    try:
        return parse_time(value, like=like, argument=argument)
    except UsageError:
        label = parse_label(value, argument=argument)  # no date at all
        year, month, day, *_ = _fields_of(label, argument)
        for earlier in range(day - 1, 0, -1):
            with contextlib.suppress(UsageError):
                return parse_time(OtherDate(year, month, earlier, 23, 59, 59), like=like)
        raise


@dataclass(frozen=True)
class OtherDate:
    """A date of other calendars that the Gregorian one lacks, such as 30 February. Reads as ISO 8601 text."""

    year: int
    month: int
    day: int
    hour: int = 0
    minute: int = 0
    second: int = 0

    def __str__(self) -> str:
        """ISO 8601 text."""
        date = f"{self.year:04d}-{self.month:02d}-{self.day:02d}"
        return f"{date}T{self.hour:02d}:{self.minute:02d}:{self.second:02d}"


def parse_label(value: TimeLike, *, argument: str = "time") -> np.datetime64 | OtherDate:
    """One time by its label, for fields whose calendar is not known yet.

    Args:
        value: As in `parse_time`.
        argument: Likewise.

    Returns:
        ``datetime64[s]``, or a date that only other calendars have. As text both sort as the times do.

    Raises:
        UsageError: The text is no date, or no calendar has it.
    """
    try:
        found: np.datetime64 = parse_time(value, argument=argument)
        return found
    except UsageError as error:
        with contextlib.suppress(UsageError):
            date = parse_time(value, like=_DAYS_360, argument=argument)
            return OtherDate(date.year, date.month, date.day, date.hour, date.minute, date.second)
        raise error


def label_number(label: np.datetime64 | OtherDate) -> int:
    """What `parse_label` returned, as a number: seconds since 1970, and far off where the calendar is another."""
    if isinstance(label, np.datetime64):
        return int(label.astype(np.int64))
    days = (label.year * 12 + label.month - 1) * 30 + label.day - 1
    return _OTHER_CALENDAR + ((days * 24 + label.hour) * 60 + label.minute) * 60 + label.second


def label_of(number: int) -> np.datetime64 | OtherDate:
    """The label of a `label_number`."""
    if number < _OTHER_CALENDAR:
        return np.datetime64(number, "s")
    minutes, second = divmod(number - _OTHER_CALENDAR, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    months, day = divmod(days, 30)
    return OtherDate(months // 12, months % 12 + 1, day + 1, hour, minute, second)


def _fields_of(value: TimeLike, argument: str) -> tuple[int, int, int, int, int, int, datetime.timedelta]:
    zero = datetime.timedelta(0)
    if isinstance(value, np.datetime64):
        if np.isnat(value):
            raise _no_date(value, argument)
        value = value.astype("datetime64[s]").item()
    if isinstance(value, OtherDate):
        return value.year, value.month, value.day, value.hour, value.minute, value.second, zero
    if isinstance(value, datetime.datetime | cftime.datetime):
        offset = (value.utcoffset() or zero) if isinstance(value, datetime.datetime) else zero
        return value.year, value.month, value.day, value.hour, value.minute, value.second, offset
    match = _ISO.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise _no_date(value, argument)
    year, month, day, hour, minute, second = (
        int(match[name] or default)
        for name, default in (
            ("year", 0),
            ("month", 1),
            ("day", 1),
            ("hour", 0),
            ("minute", 0),
            ("second", 0),
        )
    )
    offset = zero
    if match["zone"] and match["zone"] != "Z":
        digits = match["zone"][1:].replace(":", "").ljust(4, "0")
        offset = datetime.timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
        offset = -offset if match["zone"][0] == "-" else offset
    return year, month, day, hour, minute, second, offset


def _no_date(value: object, argument: str) -> UsageError:
    return UsageError(
        argument,
        expected="a date and time that exists in the calendar, as in 2026-03-25T06:00 (UTC)",
        received=repr(value) if isinstance(value, str) else value,
        remedy="Write the time as year-month-day, then T and hours:minutes.",
    )


def format_time(time: Any) -> str:
    """A time as ISO 8601 text, without seconds where they are zero."""
    gregorian = isinstance(time, np.datetime64)
    text = str(time.astype("datetime64[s]")) if gregorian else time.strftime("%Y-%m-%dT%H:%M:%S")
    return text.removesuffix(":00") if text.count(":") == 2 else text


def find_time(times: np.ndarray, time: TimeLike, *, tolerance: np.timedelta64 | None = None) -> int:
    """Index of a time on an axis: the exact one, or the nearest within a stated tolerance.

    Args:
        times: [T] ascending, datetime64[s] or cftime dates.
        time: The time sought.
        tolerance: Largest distance allowed; None asks for the exact time. Of two equally near, the earlier is
            taken.

    Returns:
        The index.

    Raises:
        OutOfRangeError: No such time on the axis.
        UsageError: The text is no date.
    """
    if len(times) == 0:
        raise OutOfRangeError(
            "time",
            expected="fields with times",
            received="an empty time axis",
            remedy="Open a file that holds fields.",
        )
    wanted = parse_time(time, like=times)
    above = int(np.searchsorted(times, wanted))
    neighbors = [index for index in (above - 1, above) if 0 <= index < len(times)]
    nearest = min(neighbors, key=lambda index: abs(times[index] - wanted))
    limit: Any = np.timedelta64(0, "s") if tolerance is None else tolerance
    if times.dtype == object:
        limit = limit.astype("timedelta64[s]").item()
    if abs(times[nearest] - wanted) <= limit:
        return nearest
    span = f"{format_time(times[0])} to {format_time(times[-1])}"
    if above == 0 or above == len(times):
        expected = f"a time within the fields, {span}"
    else:
        within = "exactly" if tolerance is None else f"within {tolerance}"
        between = f"{format_time(times[above - 1])} and {format_time(times[above])}"
        expected = f"a time the fields hold {within}; the nearest are {between} (all: {span})"
    raise OutOfRangeError(
        "time",
        expected=expected,
        received=format_time(wanted),
        remedy="Choose a time of the fields, or state a tolerance.",
    )


def days_since_epoch(times: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Days since 1970-01-01T00 UTC, the one number a model gets for a time.

    What a model takes from it is the season and the time of day, so other calendars keep these rather than
    the count of their own days, which drifts through the seasons (a 360-day calendar by five days a year). As
    in ``xarray.Dataset.convert_calendar``, calendars of 365 days and the Julian one keep their date labels,
    and others the fraction of the year; whole days are rounded down, so that the time of day stays, unless
    the calendar's year is the longer one, where two days would fall on one.

    Args:
        times: [...] datetime64 or cftime dates.

    Returns:
        [...] float64.
    """
    array = np.asarray(times)
    if array.dtype != object:
        return (array.astype("datetime64[s]") - np.datetime64(0, "s")) / np.timedelta64(1, "D")
    return np.array([_days_of(time) for time in array.ravel()], dtype=np.float64).reshape(array.shape)


def _days_of(time: cftime.datetime) -> float:
    time_of_day = (time.hour * 3600 + time.minute * 60 + time.second) / 86400
    new_year = np.datetime64(f"{time.year:04d}-01-01", "D")
    if time.calendar in (*_REAL_CALENDARS, "noleap", "365_day", "julian"):
        # Only the Julian calendar has labels the Gregorian one lacks: 29 February 1900 becomes 1 March.
        day = np.datetime64(f"{time.year:04d}-{time.month:02d}", "D") + np.timedelta64(time.day - 1, "D")
        return float(day.astype(np.int64)) + time_of_day
    year_here = {"360_day": 360, "all_leap": 366, "366_day": 366}[time.calendar]
    year_there = int((np.datetime64(f"{time.year + 1:04d}-01-01", "D") - new_year).astype(np.int64))
    day_of_year = time.dayofyr - 1
    if year_there >= year_here:
        shift = day_of_year * year_there // year_here + time_of_day
    else:
        shift = (day_of_year + time_of_day) * year_there / year_here
    return float(new_year.astype(np.int64)) + shift
