"""`climafuse infer`: ask a trained model about a file, and check what it says against the fields."""

from __future__ import annotations

import time as clock
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from climafuse.cli.data import source_path
from climafuse.cli.handler import JsonOption, print_json, print_table
from climafuse.errors import spelled_out

if TYPE_CHECKING:
    from climafuse.facts.kinds import Fact


def infer(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Directory of a trained model.")],
    climate: Annotated[
        str, typer.Option("--climate", help="Climate file, glob, Zarr store, or bundled sample.")
    ],
    time: Annotated[
        str, typer.Option("--time", help="Valid time, such as 2026-03-29T12:00; matched exactly.")
    ],
    location: Annotated[
        str | None,
        typer.Option(
            "--location", help='Place name ("Paris, FR") or "latitude,longitude".', show_default=False
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", help="What to ask; without it, an overview.", show_default=False),
    ] = None,
    map_: Annotated[
        Path | None,
        typer.Option(
            "--map", help="Draw fields and attention to this .png, .pdf or .svg.", show_default=False
        ),
    ] = None,
    whole_grid: Annotated[
        bool, typer.Option("--whole-grid", help="Without --location, ask about all of the file at once.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Ask about fields, and see the same facts computed from them."""
    from climafuse.data.times import format_time
    from climafuse.facts import window_box
    from climafuse.model.inference import answer, load_model

    if map_ is not None:
        from climafuse.report.maps import check_suffix

        check_suffix(map_)  # before the model is loaded for nothing
    model = load_model(checkpoint)
    start = clock.perf_counter()
    found = answer(
        model,
        source_path(climate),
        time=time,
        location=location,
        prompt=prompt,
        attention=map_ is not None,
        whole_grid=whole_grid,
    )
    seconds = clock.perf_counter() - start

    checks = check_facts(found.text, found.window, prompt=found.prompt)
    place = None if found.place is None else str(found.place)
    box = window_box(found.window)
    if map_ is not None:
        from climafuse.report import draw_map

        draw_map(
            found.window,
            drawn_variables(found.window.variables),
            path=map_,
            attention=found.attention,
            title=place,
            caption=found.text,
            place=None if found.place is None else (found.place.latitude, found.place.longitude),
        )
    if as_json:
        print_json(
            {
                "prompt": found.prompt,
                "answer": found.text,
                "place": place,
                "time": format_time(found.window.time[-1]),
                "box": {"south": box.south, "north": box.north, "west": box.west, "east": box.east},
                "facts": checks,
                "attended": [{"token": label, "share": share} for label, share in found.attended],
                "seconds": seconds,
                "map": map_,
            }
        )
        return
    where = "" if place is None else f"{place}, "
    typer.echo(
        f"{where}box {_degrees(box.south, 'SN')} to {_degrees(box.north, 'SN')}, {_degrees(box.west, 'WE')} to "
        f"{_degrees(box.east, 'WE')}, {format_time(found.window.time[-1])}\n\n{spelled_out(found.text)}"
    )
    if found.attended:
        leading = ", ".join(f"{label} {share:.0%}" for label, share in found.attended)
        typer.echo(f"attended most to: {spelled_out(leading)}")
    typer.echo()
    if not checks:
        typer.echo("No checkable fact in this answer: nothing vouches for it.")
    else:
        print_table(
            [(check["fact"], check["said"], check["field"], _verdict(check["right"])) for check in checks],
            header=("fact", "said", "from the fields", ""),
        )


def check_facts(text: str, window: Any, *, prompt: str | None = None) -> list[dict[str, Any]]:
    """What a text says, beside the same facts computed from the fields.

    Args:
        text: The answer.
        window: The fields it is about.
        prompt: What was asked: a bare value answers it.

    Returns:
        One row for each fact in the text: `fact`, `said`, `field` and `exact` (None where the fields do not
        tell), and `right` (None where it cannot be told).
    """
    from climafuse.facts import Fact, agrees, extract, parse, spoken
    from climafuse.facts.kinds import sources

    exact = {fact.key: fact for fact in extract(window)}
    held = set(window.available())
    rows = []
    for said in parse(text, prompt):
        truth = exact.get(said.key)
        if said.kind == "absent":
            is_held = not held.isdisjoint(sources(said.variable))
            truth = Fact("absent", said.variable, "given" if is_held else "absent")
        rows.append(
            {
                "fact": _label(said),
                "said": _value(said),
                "field": None if truth is None else _value(spoken(truth)),
                "right": None if truth is None else agrees(said, truth),
                "exact": None if truth is None else truth.value,
            }
        )
    return rows


def drawn_variables(variables: Sequence[str]) -> list[str]:
    """Which fields to draw: at most two, temperature and pressure first; wind is drawn as arrows."""
    preferred = ("t2m", "msl", "sst", "sst_anomaly", "sp", "tp", "tprate", "z500")
    chosen = [name for name in preferred if name in variables][:2]
    return chosen or list(variables[:2])


def _degrees(value: float, letters: str) -> str:
    """Such as 40.5°N; letters for negative and positive."""
    if letters == "WE":
        value = (value + 180) % 360 - 180
    return f"{abs(value):g}°{letters[value >= 0]}"


def _label(fact: Fact) -> str:
    from climafuse.facts.kinds import name_of

    detail = "".join(f" ({value})" for _, value in fact.qualifiers)
    return f"{fact.kind.replace('_', ' ')} {name_of(fact.variable)}{detail}"


def _value(fact: Fact) -> str:
    from climafuse.facts.kinds import rule_of

    if isinstance(fact.value, str):
        return fact.value
    if isinstance(fact.value, tuple):
        latitude, longitude = fact.value
        longitude = (longitude + 180) % 360 - 180
        north, east = "S" if latitude < 0 else "N", "W" if longitude < 0 else "E"
        return f"{abs(latitude):g}°{north} {abs(longitude):g}°{east}"
    return f"{fact.value:g} {rule_of(fact).unit}"


def _verdict(right: bool | None) -> str:
    return {True: "right", False: "wrong", None: "not in the fields"}[right]
