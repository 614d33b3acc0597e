"""What was measured, as JSON and as the table that is made from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from climafuse.data.files import check_destination, whole_file
from climafuse.errors import UsageError
from climafuse.json_file import read_object

COLUMNS = (
    "section",
    "case",
    "ratio",
    "quartiles",
    "aim",
    "reached",
    "seconds",
    "rate",
    "peak GB",
    "measured",
)


def put(path: Path, sections: Mapping[str, Any]) -> None:
    """Put sections into a JSON file, and write the table of all that it then holds beside it.

    Args:
        path: The file; the table has the same name with `.md`.
        sections: By name: `header` and `rows`.
    """
    held = read(path)
    held.update(sections)
    held = dict(sorted(held.items()))
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(held, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with whole_file(path.with_suffix(".md")) as unfinished:
        unfinished.write_text(table(held), encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """Read the sections that a file holds, none where there is no file.

    Args:
        path: The file.

    Raises:
        UsageError: It holds something else.
    """
    if not path.exists():
        return {}
    try:
        held = read_object(path)
        table(held)  # what makes no table here would not after an hour either
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(
            str(path),
            expected="a file that scripts/bench has written, or none",
            received="other content",
            remedy="Choose another file for --json.",
        ) from error
    return held


def check(path: Path) -> None:
    """Refuse a file into which no sections could be put, before they are measured.

    Args:
        path: As of `put`.

    Raises:
        UsageError: It is not named `.json`, which its table and the folder of kept results are told apart by; it holds
            something else.
        OutputError: It or its table could not be written.
    """
    if path.suffix != ".json":
        raise UsageError(
            "--json",
            expected="a file named .json",
            received=str(path),
            remedy=f"Name it {path.name or 'bench'}.json: its table lies beside it, as .md.",
        )
    for destination in (path, path.with_suffix(".md")):
        check_destination(destination)
    read(path)


def table(sections: Mapping[str, Any]) -> str:
    """The sections as Markdown: a table each, with machine, date and what its ratios mean.

    Args:
        sections: By name: `header` and `rows`.
    """
    lines = [
        "# What climafuse costs",
        "",
        "Written by `scripts/bench --json`; figures of one row were taken side by side in one run. A ratio holds where "
        "its seconds do not: machines are noisy.",
    ]
    for name, section in sections.items():
        rows = section["rows"]
        meanings = list(dict.fromkeys(row["meaning"] for row in rows))
        lines += ["", f"## {name}", "", machine(section["header"]) + ".", ""]
        lines += [f"Ratio: {meaning}." for meaning in meanings] + [""]
        lines += [f"| {' | '.join(COLUMNS[1:])} |", f"|{'---|' * len(COLUMNS[1:])}"]
        lines += [f"| {' | '.join(str(cell or '') for cell in cells(row)[1:])} |" for row in rows]
    return "\n".join(lines) + "\n"


def machine(header: Mapping[str, Any]) -> str:
    """What a section was measured on, and when."""
    return (
        f"{header['processor']}, {header['cores']} cores, {header['threads']} threads, products of bfloat16 in "
        f"{header['products']}, torch {header['versions']['torch']}, load {header['load_average_at_start']} to "
        f"{header['load_average_at_end']}, {header['date']}"
    )


def cells(row: Mapping[str, Any]) -> tuple[str | None, ...]:
    """One row of the table, by `COLUMNS`."""
    return (
        row["section"],
        row["case"],
        f"{row['ratio']:.3f}",
        f"{row['spread'][0]:.3f} to {row['spread'][1]:.3f}",
        row["aim"],
        {True: "yes", False: "no", None: None}[row["reached"]],
        f"{row['seconds']:.4g}",
        f"{row['rate']:.4g} {row['unit']}",
        f"{row['peak_gb']:.2f}",
        row["measured"],
    )
