"""What a fusion study found, as a picture: what is right of what is said, against what it costs."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from climafuse.data.files import whole_file
from climafuse.errors import UsageError, spelled_out
from climafuse.scaling.table import Row, notes, rows_of, spelled, winner

TRUE, SHUFFLED, GUESSER = "test.fact_f1.true", "test.fact_f1.shuffled", "test.fact_f1.prior"
# Okabe and Ito's colors, told apart by the color-blind as well; the rest repeats.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, FAINT = "#1b2733", "#8a949e"
COSTS = (
    ("training.seconds_per_step", "seconds a training step"),
    ("training.trainable_parameters", "trainable parameters"),
    ("generation.answers_per_second", "answers a second"),
)
ALIKE = 1.02  # a cost that differs by less between the rows is told, not drawn


def plot_study(
    results: Mapping[str, Any],
    paths: Sequence[str | Path],
    *,
    color: str = "fusion.name",
    marker: str = "fusion.sites",
) -> None:
    """Draw fact F1 on the test split against each cost.

    Args:
        results: Of `read_results`.
        paths: Files to write, each whole or not at all; the suffix chooses the format (.png, .svg, .pdf).
        color: Setting told by color.
        marker: Setting told by the form of the mark.

    Raises:
        UsageError: No run has finished.
    """
    rows = [row for row in rows_of(results) if row.mean(TRUE) is not None]
    if not rows:
        raise UsageError(
            "study",
            expected="at least one finished run with a fact F1 of the test split",
            received="none",
            remedy="Run the study first: climafuse scale run STUDY.yaml.",
        )
    costs = [(path, name) for path, name in COSTS if _differs(rows, path)] or list(COSTS[:1])
    others = _usual(rows, {color, marker})
    colors = dict(zip(_values(rows, color), COLORS * 9, strict=False))
    markers = dict(zip(_values(rows, marker), MARKERS * 9, strict=False))
    small = ", ".join(f"{_short(_plainly(key))} other than {_short(value)}" for key, value in others.items())
    remarks = [*_alike(rows), *([f"Figures beside marks: {small}."] if small else [])]
    remarks += [_short(note, 400) for note in notes(results)[:1]]
    lines = [part for remark in remarks for part in textwrap.wrap(remark, 46 * len(costs))]
    foot = 0.75 + 0.17 * len(lines)
    height = 4.2 + foot
    picture = Figure(figsize=(0.9 + 3.7 * len(costs) + 1.95, height), facecolor="white")
    best = winner(rows, results["study"]["metric"])
    for number, (path, name) in enumerate(costs):
        left = (0.75 + 3.7 * number) / picture.get_figwidth()
        axes = picture.add_axes(
            (left, foot / height, 3.3 / picture.get_figwidth(), 1 - (foot + 0.55) / height)
        )
        for row in rows:
            _draw(axes, row, path, colors[_key(row, color)], markers[_key(row, marker)], row is best)
            _name(axes, row, path, others)
        _dress(axes, rows, path, name, first=number == 0)
    _legend(picture, colors, markers)
    title = f"{_short(results['study']['name'])}: facts that are right, and what they cost"
    picture.text(
        0.75 / picture.get_figwidth(),
        1 - 0.27 / height,
        title,
        color=INK,
        fontsize=11.5,
        va="center",
        parse_math=False,
    )
    picture.text(
        0.75 / picture.get_figwidth(), 0.12 / height, "\n".join(lines), color=FAINT, fontsize=7.5, va="bottom",
        linespacing=1.35, parse_math=False,
    )  # fmt: skip
    for file in map(Path, paths):
        with whole_file(file) as temporary:
            picture.savefig(temporary, format=file.suffix.lstrip(".") or "png", dpi=150)


def _draw(axes: Axes, row: Row, path: str, color: str, marker: str, chosen: bool) -> None:
    """A row as one mark with the range over its seeds; its hollow mark below is what it gets with swapped values."""
    x, y, below = row.mean(path), row.mean(TRUE), row.mean(SHUFFLED)
    if x is None or y is None:
        return
    if below is not None:
        axes.plot([x, x], [below, y], color=color, linewidth=0.7, alpha=0.35, zorder=1)
        axes.plot(
            x, below, marker=marker, color=color, markerfacecolor="white", markersize=5, alpha=0.8, zorder=2
        )
    values = row.values(TRUE)
    axes.plot([x, x], [min(values), max(values)], color=INK, linewidth=1.6, zorder=4)
    if chosen:
        axes.plot(x, y, marker="o", markersize=15, color=INK, markerfacecolor="none", linewidth=0, zorder=3)
    axes.plot(x, y, marker=marker, color=color, markersize=7.5, markeredgecolor="white", zorder=5)


def _name(axes: Axes, row: Row, path: str, usual: Mapping[str, str]) -> None:
    """What neither color nor mark tells, where it is not as usual."""
    x, y = row.mean(path), row.mean(TRUE)
    told = [
        _short(spelled(row.settings[key]))
        for key, value in usual.items()
        if key in row.settings and _key(row, key) != value
    ]
    if told and x is not None and y is not None:
        axes.annotate(
            ", ".join(told), (x, y), (6, -2.5), textcoords="offset points", fontsize=6.5, color=INK, zorder=6,
            parse_math=False,
        )  # fmt: skip


def _usual(rows: Sequence[Row], told: set[str]) -> dict[str, str]:
    """The most frequent value of each setting that differs, but for those told otherwise and for options."""
    keys = dict.fromkeys(
        key for row in rows for key, value in row.settings.items() if not isinstance(value, Mapping)
    )
    counts = {key: Counter(_key(row, key) for row in rows) for key in keys if key not in told}
    return {key: count.most_common(1)[0][0] for key, count in counts.items() if len(count) > 1}


def _dress(axes: Axes, rows: Sequence[Row], path: str, name: str, *, first: bool) -> None:
    guessers = [value for row in rows for value in row.values(GUESSER)]
    if guessers:
        axes.axhline(max(guessers), color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        if first:
            axes.annotate(
                "best guesser", (1, max(guessers)), (-3, 3), xycoords=("axes fraction", "data"),
                textcoords="offset points", ha="right", fontsize=7.5, color=FAINT,
            )  # fmt: skip
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(name, color=INK, fontsize=9)
    found = [value for row in rows if (value := row.mean(path)) is not None]
    if min(found) > 0:
        axes.set_xscale("log")
        axes.set_xlim(min(found) / 1.25, max(found) * 1.25)
        wide = max(found) / min(found)
        subs = (1.0,) if wide > 300 else (1.0, 2.0, 5.0) if wide > 5 else tuple(range(1, 10))
        axes.xaxis.set_major_locator(LogLocator(subs=subs))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=8, colors=INK, labelleft=first)
    if first:
        axes.set_ylabel("fact F1, test times", color=INK, fontsize=9)
    axes.grid(axis="y", color="#e4e7ea", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _legend(picture: Figure, colors: Mapping[str, str], markers: Mapping[str, str]) -> None:
    def dot(label: str, **look: Any) -> Line2D:
        return Line2D([], [], linewidth=0, label=label, markersize=7, **look)

    told: list[Artist] = [Patch(color=color, label=_words(name)) for name, color in colors.items()]
    told.append(dot(" ", marker="None"))
    told += [dot(_words(name), marker=marker, color=FAINT) for name, marker in markers.items()]
    told.append(dot(" ", marker="None"))
    told += [
        dot("filled: true field", marker="h", color=FAINT),
        dot("hollow: swapped values", marker="h", color=FAINT, markerfacecolor="white"),
        dot("chosen", marker="o", color=INK, markerfacecolor="none", markeredgewidth=1.2),
        Line2D([], [], color=INK, linewidth=1.6, label="range over seeds"),
    ]
    legend = picture.legend(
        handles=told,
        loc="center right",
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        bbox_to_anchor=(0.995, 0.55),
    )
    for text in legend.get_texts():  # a setting may hold a dollar sign
        text.set_parse_math(False)


def _alike(rows: Sequence[Row]) -> list[str]:
    """Costs that are the same for all."""
    path, name = COSTS[1]
    found = [value for row in rows for value in row.values(path)]
    if not found or _differs(rows, path):
        return []
    return [f"{min(found):,.0f} to {max(found):,.0f} {name} each."]


def _differs(rows: Sequence[Row], path: str) -> bool:
    found = [value for row in rows if (value := row.mean(path)) is not None]
    return bool(found) and min(found) > 0 and max(found) / min(found) > ALIKE


def _key(row: Row, setting: str) -> str:
    value = row.settings.get(setting)
    return "" if value is None else str(value)


def _values(rows: Sequence[Row], setting: str) -> list[str]:
    """The values of a setting; sites from the input to the output."""
    order = {"input": -1.0, "output": float("inf")}

    def place(value: str) -> tuple[float, str]:
        return (float(value) if value.isdigit() else order.get(value, 1e6), value)

    return sorted({_key(row, setting) for row in rows}, key=place)


def _words(value: str) -> str:
    return f"at block {value}" if value.isdigit() else _short(value.replace("_", " ")) or "–"


def _short(text: str, most: int = 60) -> str:
    """One printable line of bounded length: a picture with more of it takes minutes to draw."""
    line = " ".join(spelled_out(text[: 2 * most]).split())
    return line if len(line) <= most and len(text) <= 2 * most else f"{line[:most]}…"


def _plainly(key: str) -> str:
    return key.rpartition(".")[2].replace("_", " ")
