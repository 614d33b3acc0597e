"""Climate-text pairs: which fields, what is asked, what is said.

One schema for JSONL, CSV and Parquet (by the suffix of the file), one row a pair:

    time      ISO 8601, UTC: 2026-03-25T06:00, or first and last as 2026-03-25/2026-03-28
    place     "48.9,2.3" (latitude, longitude), a place name ("Paris", "Paris, US"), a box "48.9,2.3,16,16"
              (latitude and longitude of the center, height, width, in degrees), or nothing: everywhere
    prompt    what is asked; may be left out
    text      what is said
    facts     the facts the text states, as JSON objects in a list; may be left out
    sample    a number that pairs about the same window share; given by time and place if left out
    withheld  variables to hide from the reader, comma-separated: the text says there are none; may be left
              out

Lists are JSON text in CSV and Parquet. A row that does not fit is refused with its line and the reason.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from climafuse.data.files import whole_file
from climafuse.data.places import find_place
from climafuse.data.times import OtherDate, parse_label
from climafuse.data.variables import known_names, match_variable
from climafuse.data.window import Box
from climafuse.errors import ClimafuseError, PairsError, UsageError

COLUMNS = ("time", "place", "prompt", "text", "facts", "sample", "withheld")
SUFFIXES = (".jsonl", ".csv", ".parquet")
ROW_GROUP = 8192  # rows of a Parquet file that are in memory at once


@dataclass(frozen=True)
class Pair:
    """A text about the fields of one window.

    Args:
        times: First and last time, datetime64[s] UTC; equal for one time. A date that only other calendars have,
            such as 30 February, is an `OtherDate`.
        place: Where; None for everywhere.
        prompt: What is asked; may be empty.
        text: What is said.
        facts: The facts the text states, as JSON objects.
        sample: Number of the window; pairs about the same window share it.
        withheld: Variables to hide from the reader of the text: the fields hold them, but the text
            says that they do not.
        where: File and line it was read from, for errors.

    Raises:
        PairsError: The last time is before the first, or the text is empty.
    """

    times: tuple[np.datetime64 | OtherDate, np.datetime64 | OtherDate]
    place: Box | None
    prompt: str
    text: str
    facts: tuple[dict[str, Any], ...] = ()
    sample: int = 0
    withheld: tuple[str, ...] = ()
    where: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        """Bring times to seconds, of other calendars by their labels, and check."""
        first, last = (parse_label(time) for time in self.times)
        object.__setattr__(self, "times", (first, last))
        if str(last) < str(first):
            raise PairsError(
                "time",
                expected="a first time not after the last",
                received=f"{first} to {last}",
                remedy="Write the earlier time first.",
            )
        if not self.text.strip():
            raise PairsError(
                "text", expected="some text", received="nothing", remedy="Write what shall be learned."
            )


def read_pairs(path: str | os.PathLike[str], *, size: tuple[float, float] = (16.0, 16.0)) -> list[Pair]:
    """Read a file of pairs.

    Args:
        path: JSONL, CSV (comma, UTF-8, header) or Parquet.
        size: Height and width, in degrees, of the box around a place given as a point or a name.

    Returns:
        The pairs, in the order of the file.

    Raises:
        PairsError: The file cannot be read, or a row is wrong: the message names its line (in Parquet its
            row, from 1) and the reason.
        UsageError: The suffix is none of the three.
    """
    return list(iterate_pairs(path, size=size))


def iterate_pairs(
    path: str | os.PathLike[str], *, size: tuple[float, float] = (16.0, 16.0)
) -> Iterator[Pair]:
    """The pairs of a file one by one: a large one need not be in memory.

    Args:
        path: As `read_pairs`.
        size: Likewise.

    Raises:
        PairsError: As `read_pairs`, when it comes to the row.
        UsageError: The suffix is none of the three.
    """
    path = Path(path)
    suffix = _suffix_of(path)
    if not path.is_file():
        raise PairsError(
            str(path), expected="a file of pairs", received="no such file", remedy="Check the path."
        )
    rows = {".jsonl": _jsonl_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}[suffix](path)
    window_of: dict[int, Any] = {}  # sample -> its window; every sample is about one window
    sample_of: dict[Any, int] = {}
    numbered: bool | None = None
    for where, row in rows:
        try:
            pair, has_sample = _pair_from(row, size)
            window = (pair.times, pair.place)
            numbered = has_sample if numbered is None else numbered
            if has_sample != numbered:
                raise PairsError(
                    "sample",
                    expected="a number in every row, or in none",
                    received="a row with a number" if has_sample else "a row without one",
                    remedy="Number all rows, or leave the column out.",
                )
            number = pair.sample if has_sample else sample_of.setdefault(window, len(sample_of))
            pair = replace(pair, sample=number, where=f"{path}, {where}")
            if window_of.setdefault(pair.sample, window) != window:
                raise PairsError(
                    "sample",
                    expected="the time and place of the earlier rows with this number",
                    received=f"another time or place for sample {pair.sample}",
                    remedy="Give each window its own number, or leave the column out.",
                )
        except ClimafuseError as error:
            raise PairsError(
                f"{path}, {where}: {error.argument}",
                expected=error.expected,
                received=error.received,
                remedy=error.remedy,
            ) from error
        yield pair
    if numbered is None:
        raise PairsError(
            str(path), expected="at least one pair", received="no rows", remedy="Write one row for each pair."
        )


def write_pairs(pairs: Iterable[Pair], path: str | os.PathLike[str]) -> None:
    """Write a file of pairs, whole or not at all. `read_pairs` gives equal pairs back.

    Args:
        pairs: The pairs; read only once, so that a generator may give them.
        path: JSONL, CSV or Parquet, by suffix; replaced if it is there.

    Raises:
        PairsError: There is no pair, or one holds what no file can: a fact that is not JSON, text that is not Unicode.
        UsageError: The suffix is none of the three.
    """
    path = Path(path)
    suffix = _suffix_of(path)
    rows = _rows_of(pairs, path)
    with whole_file(path) as temporary:
        if suffix == ".jsonl":
            with temporary.open("w", encoding="utf-8", newline="") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        elif suffix == ".csv":
            with temporary.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
                writer.writeheader()
                writer.writerows(_flat(row) for row in rows)
        else:
            import pyarrow as pa
            import pyarrow.parquet

            schema = pa.schema([(name, pa.int64() if name == "sample" else pa.string()) for name in COLUMNS])
            with pyarrow.parquet.ParquetWriter(temporary, schema) as writer:
                while group := [_flat(row) for row in islice(rows, ROW_GROUP)]:
                    writer.write_table(pa.Table.from_pylist(group, schema))


def _suffix_of(path: Path) -> str:
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            "pairs file",
            expected=f"a name ending in {', '.join(SUFFIXES)}",
            received=path.name,
            remedy="Rename it.",
        )
    return path.suffix.lower()


def _rows_of(pairs: Iterable[Pair], path: Path) -> Iterator[dict[str, Any]]:
    number = 0
    for number, pair in enumerate(pairs, start=1):
        yield _row_of(pair, number)
    if number == 0:
        raise PairsError(
            str(path),
            expected="at least one pair to write",
            received="none",
            remedy="If they are made from facts: other kinds, variables or larger boxes have more to say.",
        )


def _row_of(pair: Pair, number: int) -> dict[str, Any]:
    first, last = (str(time) for time in pair.times)
    box = pair.place
    row = {
        "time": first if first == last else f"{first}/{last}",
        # repr gives the shortest text that reads back as the same number.
        "place": None
        if box is None
        else ",".join(repr(float(number)) for number in (box.latitude, box.longitude, box.height, box.width)),
        "prompt": pair.prompt,
        "text": pair.text,
        "facts": list(pair.facts),
        "sample": int(pair.sample),
        "withheld": ",".join(pair.withheld),
    }
    try:
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise PairsError(
            f"pair {number}",
            expected="facts of finite numbers, text, lists and objects, and text in Unicode",
            received=error,
            remedy="Convert the values before writing.",
        ) from error
    return row


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "facts": json.dumps(row["facts"], ensure_ascii=False)}


def _pair_from(row: Mapping[str, Any], size: tuple[float, float]) -> tuple[Pair, bool]:
    """A pair from the cells of a row, and whether the row numbers its sample."""
    for name in row:
        if name not in COLUMNS:
            near = difflib.get_close_matches(name, COLUMNS, n=1)
            raise PairsError(
                repr(name),
                expected=f"columns among {', '.join(COLUMNS)}",
                received="an unknown column" + (f", close to {near[0]!r}" if near else ""),
                remedy="Rename or remove it.",
            )
    time = row.get("time")
    texts = [part.strip() for part in time.split("/")] if isinstance(time, str) else [time]
    if len(texts) > 2 or texts[0] in (None, ""):
        raise PairsError(
            "time",
            expected="a time, or first and last time with a / between",
            received=_seen(time),
            remedy="Write for example 2026-03-25T06:00 or 2026-03-25/2026-03-28.",
        )
    times = [parse_label(text) for text in texts]
    sample = row.get("sample")
    has_sample = sample not in (None, "")
    withheld = tuple(name.strip() for name in _text_from(row, "withheld", "").split(",") if name.strip())
    for name in withheld:
        if match_variable(name, {}, has_level=True) is None and match_variable(name, {}) is None:
            # It would hide nothing, and teach to deny what is there.
            near = difflib.get_close_matches(name, known_names(), n=1)
            raise PairsError(
                "withheld",
                expected="names of variables such as t2m",
                received=repr(name) + (f", close to {near[0]!r}" if near else ""),
                remedy="Correct or remove it.",
            )
    pair = Pair(
        (times[0], times[-1]),
        _place_from(row.get("place"), size),
        _text_from(row, "prompt", ""),
        _text_from(row, "text", None),
        _facts_from(row.get("facts")),
        _sample_from(sample) if has_sample else 0,
        withheld,
    )
    return pair, has_sample


def _place_from(value: Any, size: tuple[float, float]) -> Box | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise PairsError(
            "place",
            expected="text",
            received=_seen(value),
            remedy="Write latitude and longitude, a place name, or a box, as text.",
        )
    parts = value.split(",")
    if len(parts) == 4:
        try:
            numbers = [float(part) for part in parts]
        except ValueError:
            pass  # a place name with commas
        else:
            return Box(*numbers)
    return find_place(value).box(*size)


def _text_from(row: Mapping[str, Any], name: str, default: str | None) -> str:
    value = row.get(name)
    value = default if value is None else value
    if not isinstance(value, str):
        raise PairsError(name, expected="text", received=_seen(value), remedy=f"Give the row a {name}.")
    return value


def _facts_from(value: Any) -> tuple[dict[str, Any], ...]:
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        try:
            value = json.loads(value, parse_constant=_no_constant, object_pairs_hook=_each_once)
        except (ValueError, RecursionError) as error:
            raise PairsError(
                "facts", expected="JSON", received=error, remedy="Write a list of objects."
            ) from error
    if not (isinstance(value, list) and all(isinstance(fact, dict) for fact in value)):
        raise PairsError(
            "facts", expected="a list of JSON objects", received=_seen(value), remedy="Write [] for no facts."
        )
    return tuple(value)


def _sample_from(value: Any) -> int:
    if isinstance(value, str) and value.strip().isdecimal() and len(value) <= 20:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63:
        return value
    raise PairsError(
        "sample",
        expected="a whole number from 0 to 2**63 - 1",
        received=_seen(value),
        remedy="Number the windows, or leave it out.",
    )


def _seen(value: Any) -> str:
    return "nothing" if value is None or value == "" else repr(value)[:80]


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _each_once(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a key given twice, JSON itself would take the last without a word."""
    content = dict(items)
    if len(content) < len(items):
        keys = [key for key, _ in items]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return content


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    # Line by line as bytes: a bad byte is then named by its line, and U+2028 inside a text ends none.
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(
                    line.decode("utf-8-sig" if number == 1 else "utf-8"),
                    parse_constant=_no_constant,
                    object_pairs_hook=_each_once,
                )
            except (ValueError, RecursionError) as error:
                raise _unreadable(path, f"line {number}", "one JSON object a line, UTF-8", error) from error
            if not isinstance(row, dict):
                raise _unreadable(path, f"line {number}", "a JSON object", type(row).__name__)
            yield f"line {number}", row


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _unreadable(path, f"line {line}", "text in UTF-8", error.reason) from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    while True:
        where = f"line {reader.line_num + 1}"  # a row may span lines: name its first
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _unreadable(path, where, "comma-separated values", error) from error
        if not cells:
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            if len(set(header)) != len(header):
                raise _unreadable(path, where, "each column once", ", ".join(header))
            continue
        if len(cells) != len(header):
            raise _unreadable(path, where, f"{len(header)} cells, as in the header", f"{len(cells)} cells")
        yield where, dict(zip(header, cells, strict=True))


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(ROW_GROUP):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (pa.ArrowException, OSError) as error:
        raise PairsError(
            str(path), expected="a whole Parquet file", received=error, remedy="Write the file again."
        ) from error


def _unreadable(path: Path, where: str, expected: str, received: object) -> PairsError:
    return PairsError(
        f"{path}, {where}", expected=expected, received=received, remedy="Mend or remove the row."
    )
