"""Pairs: written and read back, and wrong rows named."""

from __future__ import annotations

import json
from pathlib import Path

import cftime
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from climafuse.data.pairs import Pair, read_pairs, write_pairs
from climafuse.data.window import Box
from climafuse.errors import PairsError, UsageError

NOON = np.datetime64("2026-03-25T12:00", "s")
GOOD = {"time": "2026-03-25T12:00", "place": "48.9,2.3", "prompt": "How warm is it?", "text": "8 °C"}

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
boxes = st.builds(Box, st.floats(-90, 90), st.floats(-360, 360), st.floats(0.1, 180), st.floats(0.1, 360))
seconds = st.integers(-(10**10), 10**10).map(lambda number: np.datetime64(number, "s"))
pairs_of_one_window = st.builds(
    lambda times, place, texts: [(tuple(sorted(times)), place, *text) for text in texts],
    st.tuples(seconds, seconds) | seconds.map(lambda time: (time, time)),
    st.none() | boxes,
    st.lists(
        st.tuples(
            words,
            words.filter(str.strip),
            st.lists(st.dictionaries(words, json_values, max_size=3), max_size=2),
        ),
        min_size=1,
        max_size=3,
    ),
)


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(windows=st.lists(pairs_of_one_window, min_size=1, max_size=3), first=st.integers(0, 10**9))
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_pairs_read_back_as_they_were_written(tmp_path: Path, suffix: str, windows: list, first: int) -> None:
    pairs = [
        Pair(times, place, prompt, text, tuple(facts), first + number)
        for number, window in enumerate(windows)
        for times, place, prompt, text, facts in window
    ]
    write_pairs(iter(pairs), tmp_path / f"pairs{suffix}")
    assert read_pairs(tmp_path / f"pairs{suffix}") == pairs


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_forms_of_time_and_place(tmp_path: Path) -> None:
    rows = [
        GOOD,
        {"time": "2026-03-25/2026-03-28", "text": "calm"},
        {"time": "2026-03-25", "place": "Paris", "text": "8 °C"},
        {"time": "2026-03-25", "place": "60,-5,10,20", "text": "8 °C"},
    ]
    point, everywhere, named, box = read_pairs(write(tmp_path / "pairs.jsonl", rows), size=(8, 12))
    assert point == Pair((NOON, NOON), Box(48.9, 2.3, 8, 12), "How warm is it?", "8 °C")
    assert everywhere.times == (np.datetime64("2026-03-25"), np.datetime64("2026-03-28"))
    assert everywhere.place is None
    assert everywhere.prompt == ""
    assert named.place.latitude == pytest.approx(48.85, abs=0.01)
    assert (named.place.height, named.place.width) == (8, 12)
    assert box.place == Box(60, 355, 10, 20)


def test_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert read_pairs(tmp_path / "pairs.jsonl")[0].text == "8 °C"


def test_rows_about_one_window_share_a_sample_number(tmp_path: Path) -> None:
    rows = [GOOD, {**GOOD, "time": "2026-03-26"}, {**GOOD, "text": "mild"}, {**GOOD, "place": None}]
    assert [pair.sample for pair in read_pairs(write(tmp_path / "pairs.jsonl", rows))] == [0, 1, 0, 2]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**GOOD, "time": "noon"}, "line 2: time: expected a date"),
        ({**GOOD, "time": None}, "line 2: time: .* received nothing"),
        ({**GOOD, "time": "2026-03-25/2026-03-26/2026-03-27"}, "line 2: time: "),
        ({**GOOD, "time": "2026-03-26/2026-03-25"}, "line 2: time: expected a first time not after the last"),
        ({**GOOD, "place": "Valencia"}, "line 2: place: expected one place"),
        ({**GOOD, "place": "95,0,1,1"}, "line 2: box center: "),
        ({**GOOD, "place": [48.9, 2.3]}, "line 2: place: expected text"),
        ({**GOOD, "text": "  "}, "line 2: text: expected some text"),
        ({"time": "2026-03-25"}, "line 2: text: expected text; received nothing"),
        ({**GOOD, "text": 8}, "line 2: text: expected text; received 8"),
        ({**GOOD, "prompt": 8}, "line 2: prompt: expected text; received 8"),
        ({**GOOD, "promt": "?"}, "line 2: 'promt': .* close to 'prompt'"),
        ({**GOOD, "facts": "warm"}, "line 2: facts: expected JSON"),
        ({**GOOD, "facts": ["warm"]}, "line 2: facts: expected a list of JSON objects"),
        ({**GOOD, "facts": '[{"value": NaN}]'}, "line 2: facts: .* NaN"),
        ({**GOOD, "sample": -1}, "line 2: sample: expected a whole number"),
        ({**GOOD, "sample": True}, "line 2: sample: expected a whole number"),
        ({**GOOD, "sample": 1.5}, "line 2: sample: expected a whole number"),
        (
            {**GOOD, "time": "2026-03-26", "sample": 0},
            "line 2: sample: .* another time or place for sample 0",
        ),
        (GOOD, "line 2: sample: expected a number in every row, or in none"),
    ],
)
def test_wrong_rows_are_named_by_line_and_reason(tmp_path: Path, row: dict, reason: str) -> None:
    with pytest.raises(PairsError, match=f"pairs.jsonl, {reason}"):
        read_pairs(write(tmp_path / "pairs.jsonl", [{**GOOD, "sample": 0}, row]))


def test_withheld_variables_and_dates_of_other_calendars(tmp_path: Path) -> None:
    time = cftime.datetime(2026, 3, 25, 12, calendar="noleap")
    pair = Pair((time, time), None, "?", "There is no pressure here.", withheld=("msl", "sp"))
    write_pairs([pair], tmp_path / "pairs.csv")
    (found,) = read_pairs(tmp_path / "pairs.csv")
    assert found.withheld == ("msl", "sp")
    assert found.times == (NOON, NOON)


def test_unreadable_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    good = json.dumps(GOOD).encode()
    for line, reason in [
        (b"{'time'", "one JSON object"),
        (b"\xff", "UTF-8"),
        (b"[]", "JSON object; received list"),
    ]:
        path.write_bytes(good + b"\n\n" + line + b"\n")  # blank lines count
        with pytest.raises(PairsError, match=f"line 3: .*{reason}"):
            read_pairs(path)


def test_csv_as_a_spreadsheet_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_bytes(
        b"\xef\xbb\xbftime,place,prompt,text\r\n"
        b'2026-03-25T12:00,"48.9,2.3",,"two\r\nlines, quoted ""so"""\r\n\r\n'
    )
    (pair,) = read_pairs(path)
    assert pair.text == 'two\r\nlines, quoted "so"'
    assert (pair.place, pair.prompt, pair.sample) == (Box(48.9, 2.3, 16, 16), "", 0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b'time,text\n2026-03-25,"two\nlines"\n2026-03-26\n',
            "line 4: expected 2 cells, as in the header; received 1",
        ),
        (b'time,text\n2026-03-25,"two\nlines"\nnoon,warm\n', "line 4: time: expected a date"),
        (b"time,text\n2026-03-25,\xff\n", "line 2: expected text in UTF-8"),
        (b'time,text\n2026-03-25,"warm"er\n', "line 2: expected comma-separated values"),
        (b"time,time\n", "line 1: expected each column once"),
        (b"time,text\n", "expected at least one pair"),
        (b"", "expected at least one pair"),
    ],
)
def test_wrong_csv(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "pairs.csv"
    path.write_bytes(content)
    with pytest.raises(PairsError, match=reason):
        read_pairs(path)


def test_parquet_with_timestamps_and_a_wrong_row(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    times = np.array(["2026-03-25T12:00", "2026-03-26T12:00"], dtype="datetime64[ns]")
    pyarrow.parquet.write_table(pa.table({"time": times, "text": ["warm", "mild"]}), path)
    assert [pair.times[0] for pair in read_pairs(path)] == [NOON, NOON + np.timedelta64(1, "D")]
    pyarrow.parquet.write_table(pa.table({"time": times, "text": ["warm", None]}), path)
    with pytest.raises(PairsError, match="row 2: text"):
        read_pairs(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(PairsError, match="a whole Parquet file"):
        read_pairs(path)


def test_missing_file_and_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(PairsError, match="no such file"):
        read_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(UsageError, match=r"\.jsonl, \.csv, \.parquet"):
        read_pairs(tmp_path / "pairs.txt")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_failed_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"pairs{suffix}"
    good = Pair((NOON, NOON), None, "", "warm")
    write_pairs([good], path)
    for wrong in ({"value": object()}, {"value": float("nan")}, {"value": "\ud800"}):
        with pytest.raises(PairsError, match="pair 2"):
            write_pairs([good, Pair((NOON, NOON), None, "", "mild", (wrong,))], path)
    assert read_pairs(path) == [good]
    assert list(tmp_path.iterdir()) == [path]


def test_a_misspelled_withheld_variable_is_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    good = {"time": "2026-03-25T06:00", "text": "No pressure given.", "withheld": "msl"}
    path.write_text("".join(json.dumps(row) + "\n" for row in (good, {**good, "withheld": "mls"})))
    with pytest.raises(PairsError, match=r"line 2.*withheld.*'msl'"):
        read_pairs(path)
