"""Times: parsed, found, counted in days."""

from __future__ import annotations

import datetime

import cftime
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from climafuse.data.times import (
    OtherDate,
    days_since_epoch,
    find_time,
    format_time,
    label_number,
    label_of,
    latest_time,
    parse_label,
    parse_time,
)
from climafuse.errors import OutOfRangeError, UsageError

AXIS = np.array(["2026-03-25T00", "2026-03-25T07", "2026-03-25T14"], dtype="datetime64[s]")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-03-25T06:00", "2026-03-25T06:00:00"),
        ("2026-03-25 06:00:00Z", "2026-03-25T06:00:00"),
        ("2026-03-25", "2026-03-25T00:00:00"),
        ("1997-12", "1997-12-01T00:00:00"),
        (
            "2026-03-25T01:30+02:00",
            "2026-03-24T23:30:00",
        ),  # half past one two hours east of Greenwich is 23:30 UTC
        ("2026-03-25T22-05", "2026-03-26T03:00:00"),
        ("2026-3-25T06Z", "2026-03-25T06:00:00"),
    ],
)
def test_reads_iso_text_as_utc(text: str, expected: str) -> None:
    assert parse_time(text) == np.datetime64(expected)


def test_reads_date_objects() -> None:
    zone = datetime.timezone(datetime.timedelta(hours=1))
    assert parse_time(datetime.datetime(2026, 1, 1, 0, 30, tzinfo=zone)) == np.datetime64("2025-12-31T23:30")
    assert parse_time(np.datetime64("2026-01-01T00:00:00.000000000")) == np.datetime64("2026-01-01")


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2026", "2026-13-01", "2026-02-30", "now", "NaT", "2026-03-25T25:00"]
)
def test_refuses_what_is_no_date(text: str) -> None:
    with pytest.raises(UsageError, match="expected a date"):
        parse_time(text)


def test_calendar_of_the_axis_decides_which_dates_exist() -> None:
    axis = cftime.num2date([0, 1], "days since 2000-02-29", calendar="360_day")
    assert parse_time("2000-02-30", like=axis) == axis[1]
    with pytest.raises(UsageError):
        parse_time("2000-02-31", like=axis)


@pytest.mark.parametrize(
    ("calendar", "text", "expected"),
    [
        ("360_day", "2026-03-31T06:00", "2026-03-30T23:59:59"),
        ("360_day", "2026-02-30T06:00", "2026-02-30T06:00:00"),
        ("noleap", "2024-02-29", "2024-02-28T23:59:59"),
        ("noleap", "2024-02-30", "2024-02-28T23:59:59"),
        ("standard", "2026-02-30", "2026-02-28T23:59:59"),
        ("standard", "1582-10-10", "1582-10-04T23:59:59"),  # left out when the Julian calendar ended
        (None, "2026-02-30T18:00", "2026-02-28T23:59:59"),
        (None, "2024-02-30T18:00", "2024-02-29T23:59:59"),
        (None, "2026-02-28", "2026-02-28T00:00:00"),
    ],
)
def test_of_a_date_that_a_calendar_lacks_the_latest_time_before_it_is_taken(calendar, text, expected) -> None:
    axis = AXIS
    if calendar is not None:
        axis = np.array([cftime.datetime(2026, 1, 1, calendar=calendar)], dtype=object)
    found = latest_time(text, like=axis)
    assert (str(found) if calendar is None else found.strftime("%Y-%m-%dT%H:%M:%S")) == expected


@pytest.mark.parametrize("text", ["yesterday", "2026-02-31", "2026-13-01", "0000-02-30"])
def test_what_is_a_date_of_no_calendar_has_none_before_it(text: str) -> None:
    with pytest.raises(UsageError, match="expected a date"):
        latest_time(text, like=AXIS)


@settings(deadline=None)
@given(st.datetimes(min_value=datetime.datetime(1, 1, 1), max_value=datetime.datetime(9999, 12, 31)))
def test_formatted_times_read_back(time: datetime.datetime) -> None:
    exact = np.datetime64(time, "s")
    assert parse_time(format_time(exact)) == exact


def test_labels_of_dates_that_only_other_calendars_have() -> None:
    days = [f"1850-{month:02d}-{day:02d}T{day:02d}:59:01" for month in (2, 3) for day in range(1, 24)]
    for text in [*days, "1850-02-29T00:00:00", "1850-02-30T23:59:59", "0001-02-30T00:00:00"]:
        label = parse_label(text)
        assert str(label) == text
        assert label_of(label_number(label)) == label
        assert isinstance(label, OtherDate) == (text[5:10] in ("02-29", "02-30"))
    assert parse_label("1852-02-29") == np.datetime64("1852-02-29T00:00:00")
    # Two days after the 28th, it is no 2 March, and nobody need convert the one to compare it with the other.
    assert parse_label("1850-02-30") != np.datetime64("1850-03-02", "s")
    axis = cftime.num2date([58, 59, 60], "days since 1850-01-01", calendar="360_day")
    assert find_time(axis, parse_label("1850-02-30")) == 1
    for no_date in ("1850-02-31", "1850-04-31", "1850-00-01"):
        with pytest.raises(UsageError):
            parse_label(no_date)


def test_finds_the_exact_time_only() -> None:
    assert find_time(AXIS, "2026-03-25T07:00") == 1
    with pytest.raises(OutOfRangeError, match="nearest are 2026-03-25T07:00 and 2026-03-25T14:00"):
        find_time(AXIS, "2026-03-25T08:00")


def test_tolerance_is_inclusive_and_takes_the_nearest_earlier_of_two() -> None:
    assert find_time(AXIS, "2026-03-25T08:00", tolerance=np.timedelta64(1, "h")) == 1
    assert (
        find_time(AXIS, "2026-03-25T10:30", tolerance=np.timedelta64(4, "h")) == 1
    )  # 3.5 h from both 07 and 14
    with pytest.raises(OutOfRangeError):
        find_time(AXIS, "2026-03-25T08:01", tolerance=np.timedelta64(60, "m"))


@pytest.mark.parametrize("time", ["2026-03-24T23:00", "2026-03-25T15:00"])
def test_outside_names_the_range(time: str) -> None:
    with pytest.raises(OutOfRangeError, match="2026-03-25T00:00 to 2026-03-25T14:00"):
        find_time(AXIS, time)


def test_finds_times_of_other_calendars() -> None:
    axis = cftime.num2date([0, 1, 2], "days since 2000-02-29", calendar="360_day")
    assert find_time(axis, "2000-02-30") == 1
    assert find_time(axis, "2000-02-30T05", tolerance=np.timedelta64(6, "h")) == 1
    with pytest.raises(OutOfRangeError, match="2000-02-29T00:00 to 2000-03-01T00:00"):
        find_time(axis, "2000-04-01")


def test_days_since_epoch_of_the_gregorian_calendar() -> None:
    # 2000-01-01 is 30 years of 365 days and 7 leap days (72, 76, …, 96) after 1970-01-01.
    times = np.array(["1970-01-01T00", "1970-01-01T18", "1969-12-31T00", "2000-01-01"], dtype="datetime64[s]")
    np.testing.assert_array_equal(days_since_epoch(times), [0, 0.75, -1, 30 * 365 + 7])
    same = cftime.num2date([0, 0.75, -1, 30 * 365 + 7], "days since 1970-01-01", calendar="standard")
    np.testing.assert_array_equal(days_since_epoch(same), [0, 0.75, -1, 30 * 365 + 7])


def test_days_since_epoch_keep_season_and_time_of_day_in_other_calendars() -> None:
    # The same label in the 365-day calendar; in the 360-day one, 1 July is half of the year: 180 / 360 =
    # 182.5 / 365.
    noleap = cftime.datetime(2100, 7, 1, 6, calendar="noleap")
    assert days_since_epoch([noleap])[0] == days_since_epoch(np.array(["2100-07-01T06"], "datetime64[s]"))[0]
    new_year = days_since_epoch(np.array(["2100-01-01"], "datetime64[s]"))[0]
    half = cftime.datetime(2100, 7, 1, 6, calendar="360_day")
    assert days_since_epoch([half])[0] == new_year + 182 + 0.25
    last = cftime.datetime(2100, 12, 30, calendar="360_day")
    assert days_since_epoch([last])[0] == new_year + 364 - 1  # day 359 of 360 -> 363.98 of 365, rounded down


@pytest.mark.parametrize("calendar", ["360_day", "noleap", "all_leap", "julian", "proleptic_gregorian"])
def test_days_since_epoch_never_run_back(calendar: str) -> None:
    times = cftime.num2date(np.arange(0, 1500, 0.25), "days since 1999-01-01", calendar=calendar)
    assert (np.diff(days_since_epoch(times)) > 0).all()
