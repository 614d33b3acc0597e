"""A table gives the pairs back that went in, and takes little room."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from climafuse.data.pair_table import PairTable
from climafuse.data.pairs import Pair, read_pairs, write_pairs
from climafuse.data.window import Box
from climafuse.errors import PairsError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
boxes = st.builds(
    Box,
    st.floats(-90, 90),
    st.floats(-1000, 1000),
    st.floats(0, 180, exclude_min=True),
    st.floats(0, 360, exclude_min=True),
)
seconds = st.integers(-(10**10), 10**11)
pairs = st.builds(
    lambda begin, length, **rest: Pair(
        (np.datetime64(begin, "s"), np.datetime64(begin + length, "s")), **rest
    ),
    seconds,
    st.sampled_from([0, 3600, 10**7]),
    place=st.none() | boxes,
    prompt=st.text(max_size=5),
    text=st.text(min_size=1, max_size=5).filter(str.strip),
    facts=st.lists(st.dictionaries(st.text(max_size=3), json_values, max_size=2), max_size=2).map(tuple),
    sample=st.integers(0, 2**63 - 1),
    withheld=st.lists(st.sampled_from(["t2m", "u10", "msl"]), unique=True).map(tuple),
)


@given(st.lists(pairs, max_size=5))
def test_the_pairs_come_back(given_):
    for table in (PairTable(iter(given_)), pickle.loads(pickle.dumps(PairTable(given_)))):
        assert list(table) == given_
        assert table == given_
        assert table[1:] == given_[1:]
        assert len(table) == len(given_)
        times, rows = table.windows()
        assert [tuple(times[row]) for row in rows] == [pair.times for pair in given_]
        assert table.texts(np.arange(len(given_))) == [(pair.prompt, pair.text) for pair in given_]


def test_pairs_about_a_date_that_the_gregorian_calendar_lacks(tmp_path):
    dates = ("1850-02-30", "1850-03-02"), ("1850-03-02", "1850-03-02"), ("1850-02-30", "1850-02-30")
    given_ = [Pair(times, None, "", "text", sample=number) for number, times in enumerate(dates)]
    assert list(PairTable(given_)) == given_
    for suffix in ("jsonl", "csv", "parquet"):
        write_pairs(given_, tmp_path / f"pairs.{suffix}")
        assert read_pairs(tmp_path / f"pairs.{suffix}") == given_
    windows, rows = PairTable(given_).windows()
    assert [tuple(map(str, windows[row])) for row in rows] == [tuple(map(str, pair.times)) for pair in given_]
    with pytest.raises(PairsError, match="not after"):
        Pair(("1850-03-01", "1850-02-30"), None, "", "text")


def test_other_pairs_are_not_equal():
    time = np.datetime64("2026-03-25", "s")
    one, other = (Pair((time, time), None, "", text) for text in "ab")
    assert PairTable([one]) != [other]
    assert PairTable([one]) != [one, one]
    assert PairTable([one]) != "a"
    with pytest.raises(IndexError):
        PairTable([one])[1]


def test_facts_that_are_not_json_are_named():
    time = np.datetime64("2026-03-25", "s")
    good, bad = (Pair((time, time), None, "", "x", ({"value": value},)) for value in (1.0, np.nan))
    with pytest.raises(PairsError, match="pair 2: expected facts of finite numbers"):
        PairTable([good, bad])


def test_repeated_texts_take_no_room():
    time = np.datetime64("2026-03-25", "s")
    table = PairTable(
        Pair((time + n, time + n), Box(n % 90, n, 16, 16), f"How warm {n % 7}?", f"{n % 40} °C.", (), n)
        for n in range(5000)
    )
    assert len(pickle.dumps(table)) < 80 * 5000
