"""Days, hours and variables as users give them."""

from __future__ import annotations

from datetime import date

import pytest

from climafuse.data.download.request import Days, check_hours, require, stored_variables
from climafuse.errors import UsageError, VariableNotFoundError


def test_days_include_both_ends_and_split_at_months() -> None:
    days = Days.of("2019-12-30", date(2020, 2, 1))
    assert [str(piece) for piece in days.split("month")] == [
        "20191230-20191231",
        "20200101-20200131",
        "20200201",
    ]
    assert [len(piece.each()) for piece in days.split("month")] == [2, 31, 1]
    assert len(days.split("day")) == 34
    assert Days.of("2020-02-28", "2020-03-01").each()[1] == date(2020, 2, 29)


def test_an_end_before_the_start_is_refused() -> None:
    with pytest.raises(UsageError, match="a day not before the start"):
        Days.of("2020-01-02", "2020-01-01")
    with pytest.raises(UsageError, match=r"^end"):
        Days.of("2020-01-02", "2020-02-30")


def test_hours_are_those_of_a_day() -> None:
    assert check_hours(None) == tuple(range(24))
    assert check_hours([18, 0, 0]) == (0, 18)
    for wrong in ([], [24], [-1]):
        with pytest.raises(UsageError, match="hours"):
            check_hours(wrong)


def test_derived_variables_are_fetched_by_what_they_come_from() -> None:
    found = stored_variables(["ws10", "T2M", "u10", "t850"])
    assert [variable.name for variable in found] == ["u10", "v10", "t2m", "t850"]
    with pytest.raises(VariableNotFoundError):
        stored_variables(["nonsense"])
    with pytest.raises(UsageError, match="at least one"):
        stored_variables([])


def test_a_missing_library_is_told_with_its_extra() -> None:
    with pytest.raises(UsageError, match=r"pip install 'climafuse\[era5\]'"):
        require("no_such_library.part", extra="era5", service="ERA5")
