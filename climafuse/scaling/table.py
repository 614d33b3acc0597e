"""What a study found, as a table: one row for runs that differ in nothing but the seed."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from climafuse.errors import spelled_out
from climafuse.scaling.study import SEED, figure

# Header, figure, decimals. What no run of a study measured is left out.
COLUMNS = (
    ("validation F1", "validation.fact_f1.true", 3),
    ("test F1", "test.fact_f1.true", 3),
    ("shuffled", "test.fact_f1.shuffled", 3),
    ("field shown", "test.fact_f1.shown", 3),
    ("best guesser", "test.fact_f1.prior", 3),
    ("loss before", "training.loss_before", 3),
    ("validation loss", "training.validation_loss", 3),
    ("steps", "training.steps", 0),
    ("s/step", "training.seconds_per_step", 3),
    ("trainable", "training.trainable_parameters", 0),
    ("answers/s", "generation.answers_per_second", 1),
    ("training s", "training.train_seconds", 0),
    ("peak GB", "training.peak_memory_gb", 2),
)


@dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but the seed.

    Args:
        settings: What they have in common, of what differs in the study.
        records: Of the runs that finished.
        failed: Of those that failed.
    """

    settings: Mapping[str, Any]
    records: list[Mapping[str, Any]] = field(default_factory=list)
    failed: list[Mapping[str, Any]] = field(default_factory=list)

    def values(self, path: str) -> list[float]:
        """One figure of every run that has it."""
        found = (figure(record["figures"], path) for record in self.records)
        return [value for value in found if value is not None]

    def mean(self, path: str) -> float | None:
        """Its mean over the runs."""
        values = self.values(path)
        return sum(values) / len(values) if values else None


def rows_of(results: Mapping[str, Any]) -> list[Row]:
    """Rows, the best by the study's metric first, those without it last.

    Args:
        results: Of `read_results`.
    """
    rows: dict[str, Row] = {}
    for record in results["runs"]:
        settings = {key: value for key, value in record["settings"].items() if key != SEED}
        row = rows.setdefault(json.dumps(settings, sort_keys=True), Row(settings))
        (row.records if record["status"] == "finished" else row.failed).append(record)
    metric, sign = results["study"]["metric"], -1 if results["study"]["goal"] == "highest" else 1
    means = {key: row.mean(metric) for key, row in rows.items()}
    ranked = sorted(rows, key=lambda key: (means[key] is None, sign * (means[key] or 0.0)))
    return [rows[key] for key in ranked]


def winner(rows: Sequence[Row], metric: str) -> Row | None:
    """The row with the best mean of the metric, of those with the most seeds; None before any run finished.

    One seed may be luck: what was tried with more of them goes before.

    Args:
        rows: Of `rows_of`.
        metric: By which they are ranked.
    """
    measured = [row for row in rows if row.mean(metric) is not None]
    most = max((len(row.records) for row in measured), default=0)
    return next((row for row in measured if len(row.records) == most), None)


def table_of(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and cells; the mean over seeds, and the least and the greatest value where there are several.

    Args:
        results: Of `read_results`.
    """
    rows = rows_of(results)
    keys = _told(rows)
    columns = [column for column in COLUMNS if any(row.values(column[1]) for row in rows)]
    header = [
        "",
        *(key.rpartition(".")[2] if SHORT.get(key) is None else SHORT[key] for key in keys),
        "seeds",
    ]
    best = winner(rows, results["study"]["metric"])
    cells = []
    for row in rows:
        told = [spelled(row.settings.get(key)) for key in keys]
        figures = [_cell(row.values(path), decimals) for _, path, decimals in columns]
        seeds = str(len(row.records)) + (f", {len(row.failed)} failed" if row.failed else "")
        cells.append(["*" if row is best else "", *told, seeds, *figures])
    return [*header, *(name for name, _, _ in columns)], cells


SHORT = {"fusion.name": "fusion", "encoder.name": "encoder", "data.source": "data"}


def markdown(results: Mapping[str, Any]) -> str:
    """The table in Markdown, with what it is about; whatever texts it holds, they are no markup."""
    header, cells = table_of(results)
    study = results["study"]
    lines = [f"# Study: {_plain(study['name'])}", ""]
    if study["question"]:
        lines += [_plain(study["question"]), ""]
    lines += [
        _line(header),
        _line("---" for _ in header),
        *map(_line, cells),
        "",
        *map(_plain, notes(results)),
    ]
    return "\n".join(lines) + "\n"


def notes(results: Mapping[str, Any]) -> list[str]:
    """What one must know to read the table, a line each."""
    study, runs = results["study"], results["runs"]
    failed = [record for record in runs if record["status"] == "failed"]
    random = any(record.get("figures", {}).get("training", {}).get("random_weights") for record in runs)
    budget = study["budget"]
    limits = [f"{budget[unit]:g} {unit}" for unit in ("seconds", "steps") if budget[unit] is not None]
    found = [
        f"{len(runs)} of {results['num_planned']} runs done"
        + (f", {' and '.join(limits)} of training each" if limits else "")
        + f", on {_count(results['machine']['cores'], 'core')} of {results['machine']['processor']}, "
        f"{results['date'][:10]}."
        + (" Weights of the backbone: random, for capacity only." if random else ""),
        f"Chosen (*) by {study['metric']}, the {study['goal']}; figures of the test split choose nothing. "
        "Where there are several seeds: mean (least to greatest).",
    ]
    found += [f"Failed: {record['label']} ({record['id']}): {record['why']}" for record in failed]
    return [" ".join(spelled_out(line).split()) for line in found]


def spelled(value: Any) -> str:
    """A setting in a cell."""
    if isinstance(value, list):
        return ", ".join(map(spelled, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {spelled(entry)}" for key, entry in value.items() if entry is not None)
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _told(rows: Sequence[Row]) -> list[str]:
    """Settings that differ between rows; options follow from what has them, unless nothing else differs."""
    keys = dict.fromkeys(key for row in rows for key in row.settings)
    differing = [key for key in keys if len({json.dumps(row.settings.get(key)) for row in rows}) > 1]
    # A section that some runs set to null, such as adapters, is no option of what another key names.
    plain = [
        key
        for key in differing
        if not any(isinstance(row.settings.get(key), Mapping) for row in rows)
        or any(row.settings.get(key, ...) is None for row in rows)
    ]
    return plain or differing


def _cell(values: Sequence[float], decimals: int) -> str:
    if not values:
        return "–"
    mean = f"{sum(values) / len(values):,.{decimals}f}"
    if len(values) == 1 or min(values) == max(values):
        return mean
    return f"{mean} ({min(values):,.{decimals}f} to {max(values):,.{decimals}f})"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(_plain(cell).replace("|", "\\|") for cell in cells) + " |"


def _plain(text: str) -> str:
    return html.escape(" ".join(spelled_out(text).split()), quote=False)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
