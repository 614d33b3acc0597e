"""Splits: blocks of time with gaps, and windows wholly inside one."""

from __future__ import annotations

import datetime
import itertools

import cftime
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from climafuse.data.splits import Splits, split_at, split_by_periods, split_by_time
from climafuse.errors import UsageError

HOUR = datetime.timedelta(hours=1)


def axis(hours: list[int]) -> np.ndarray:
    return np.datetime64("2026-03-25", "s") + np.array(hours) * np.timedelta64(3600, "s")


def test_shares_of_the_steps_that_are_left() -> None:
    # 20 six-hour steps. A gap of 12 h drops one step each (11 and 13 are 12 h apart): 18 left, 60 % of them
    # is 10.8.
    splits = split_by_time(axis(list(range(0, 120, 6))), gap=12 * HOUR)
    assert splits.train.tolist() == list(range(11))
    assert splits.dropped.tolist() == [11, 15]
    assert splits.validation.tolist() == [12, 13, 14]  # round(80 % of 18) = 14 steps for both
    assert splits.test.tolist() == [16, 17, 18, 19]


def test_without_a_gap_nothing_is_dropped() -> None:
    splits = split_by_time(axis(list(range(10))), gap=0 * HOUR)
    assert [splits.train.tolist(), splits.validation.tolist(), splits.test.tolist()] == [
        [*range(6)],
        [6, 7],
        [8, 9],
    ]
    assert splits.dropped.size == 0


@settings(deadline=None)
@given(
    steps=st.lists(st.integers(1, 48), min_size=2, max_size=60),
    gap=st.integers(0, 60),
    shares=st.tuples(st.floats(0.1, 1), st.floats(0.1, 1), st.floats(0.1, 1)),
)
def test_blocks_follow_one_another_with_the_gap_between(steps: list[int], gap: int, shares: tuple) -> None:
    times = axis([0, *np.cumsum(steps)])
    try:
        splits = split_by_time(
            times, fractions=tuple(share / sum(shares) for share in shares), gap=gap * HOUR
        )
    except UsageError:
        assume(False)
    blocks = [splits.train, splits.validation, splits.test]
    for block in blocks:
        assert len(block) >= 1
        assert (np.diff(block) == 1).all()  # contiguous
    assert sorted(np.concatenate([*blocks, splits.dropped])) == list(range(len(times)))
    for earlier, later in itertools.pairwise(blocks):
        assert times[later[0]] - times[earlier[-1]] >= np.timedelta64(gap, "h")


def test_a_split_exists_whenever_three_steps_fit() -> None:
    assert split_by_time(axis([0, 24, 48]), gap=24 * HOUR).validation.tolist() == [1]
    with pytest.raises(UsageError, match="0, 0, 0 of 3 steps from 2026-03-25T00:00 to 2026-03-27T00:00"):
        split_by_time(axis([0, 24, 48]), gap=25 * HOUR)


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.0), (0.5, 0.5), (0.6, 0.2, 0.3), (-0.2, 0.6, 0.6)])
def test_impossible_shares(fractions: tuple) -> None:
    with pytest.raises(UsageError, match="fractions"):
        split_by_time(axis(list(range(10))), fractions=fractions, gap=HOUR)


def test_negative_gap() -> None:
    with pytest.raises(UsageError, match="gap"):
        split_by_time(axis(list(range(10))), gap=-HOUR)


def test_cut_at_dates() -> None:
    times = axis(list(range(0, 240, 24)))  # 25 March to 3 April
    splits = split_at(times, validation="2026-03-30", test="2026-04-01T12:00", gap=48 * HOUR)
    assert splits.train.tolist() == [0, 1, 2, 3]  # to the 28th, 48 h before the 30th
    assert splits.test.tolist() == [8, 9]  # from 2 April
    assert splits.validation.tolist() == [5, 6]  # the 30th and 31st: 48 h before 2 April
    assert splits.dropped.tolist() == [4, 7]


@pytest.mark.parametrize(("validation", "test"), [
    ("2027-01-01", "2027-02-01"), ("2026-03-25", "2026-03-30"), ("2026-03-30", "2026-03-27"),
])  # fmt: skip
def test_cut_that_leaves_a_split_empty(validation: str, test: str) -> None:
    with pytest.raises(UsageError, match="at least one step in each"):
        split_at(axis(list(range(0, 240, 24))), validation=validation, test=test, gap=HOUR)


def test_other_calendars() -> None:
    times = cftime.num2date(np.arange(0, 360, 30), "days since 2000-01-16", calendar="360_day")
    by_share = split_by_time(times, gap=datetime.timedelta(days=60))
    at_dates = split_at(times, validation="2000-08-01", test="2000-11-01", gap=datetime.timedelta(days=60))
    # Twelve months, two dropped: 10 left, 6 + 2 + 2. The cuts: August to September, November to December.
    assert by_share.dropped.tolist() == [6, 9]
    assert [by_share.train[-1], by_share.validation[0], by_share.test[0]] == [5, 7, 10]
    assert [at_dates.train.tolist(), at_dates.validation.tolist()] == [list(range(6)), [7, 8]]


MONTHS = np.arange("1979-01", "2014-01", dtype="datetime64[M]").astype("datetime64[s]")


def test_periods_are_whole_months_and_days() -> None:
    periods = {
        "train": ("1979-01", "2004-12"),
        "validation": ("2005-07", "2006-06"),
        "test": ("2007-01", "2013-12"),
    }
    splits = split_by_periods(MONTHS, periods)
    assert splits.train.tolist() == list(range(26 * 12))
    assert splits.validation.tolist() == list(range(26 * 12 + 6, 26 * 12 + 18))
    assert splits.test.tolist() == list(range(28 * 12, 35 * 12))
    assert splits.dropped.tolist() == [*range(312, 318), *range(330, 336)]

    hours = axis(list(range(0, 240, 6)))  # 25 March, 00 h, to 3 April, 18 h
    periods = {"train": ("2026-03-25", "2026-03-28"), "validation": ("2026-03-30T06:00", "2026-03-31T12:00"),
               "test": ("2026-04", "2026-04")}  # fmt: skip
    splits = split_by_periods(hours, periods, gap=12 * HOUR)
    assert splits.train.tolist() == list(range(16))  # to 28 March, 18 h
    assert splits.validation.tolist() == list(range(21, 27))  # the last time is one of it
    assert splits.test.tolist() == list(range(28, 40))


def test_periods_in_any_order_and_calendar() -> None:
    periods = {
        "test": ("1979-01", "1985-12"),
        "train": ("1990-01", "2013-12"),
        "validation": ("1987-01", "1988-12"),
    }
    splits = split_by_periods(MONTHS, periods, gap=datetime.timedelta(days=365))
    assert [splits.test[0], splits.validation[0], splits.train[0]] == [0, 96, 132]
    times = cftime.num2date(np.arange(0, 360, 30), "days since 2000-01-16", calendar="360_day")
    periods = {
        "train": ("2000-01", "2000-02-30"),
        "validation": ("2000-04", "2000-05"),
        "test": ("2000-07", "2000-12"),
    }
    splits = split_by_periods(times, periods)
    assert [splits.train.tolist(), splits.validation.tolist()] == [[0, 1], [3, 4]]
    assert splits.test.tolist() == list(range(6, 12))


@pytest.mark.parametrize(("change", "gap", "message"), [
    ({"validation": ("2004-12", "2006-12")}, 0, "begin after the end of train.*validation from 2004-12-01"),
    ({"validation": ("1990-01", "1991-12")}, 0, "validation to begin after the end of train"),
    ({}, 60, "no sooner than the gap of 60 days"),
    ({"test": ("2014-01", "2015-12")}, 0, "periods: test.*steps of the fields between .1979-01"),
    ({"test": ("2013-12", "2007-01")}, 0, "periods: test"),
    ({"test": ("2007-13", "2008-01")}, 0, "periods: test.*a date"),
    ({"dev": ("2007-01", "2008-01")}, 0, "for each of train, validation, test"),
    ({}, -1, "gap"),
])  # fmt: skip
def test_periods_that_leak_or_are_empty(change: dict, gap: int, message: str) -> None:
    periods = {
        "train": ("1979-01", "2004-12"),
        "validation": ("2005-01", "2006-12"),
        "test": ("2007-03", "2013-12"),
    }
    with pytest.raises(UsageError, match=message):
        split_by_periods(MONTHS, periods | change, gap=datetime.timedelta(days=gap))


def test_history_stays_inside_the_split() -> None:
    splits = Splits(np.arange(5), np.array([7, 8, 9, 11, 12, 13]), np.array([20]))
    assert splits.valid_times("train", history=3).tolist() == [2, 3, 4]
    assert splits.valid_times("validation", history=3).tolist() == [9, 13]  # 10 is missing
    with pytest.raises(UsageError, match="at most the 1 steps of the test split"):
        splits.valid_times("test", history=2)
    with pytest.raises(UsageError, match="one of train, validation, test"):
        splits.valid_times("dev")  # type: ignore[arg-type]
