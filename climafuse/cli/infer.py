"""`climafuse infer`: ask a trained model about a file, and check what it says against the fields."""

from __future__ import annotations

import time as clock
from pathlib import Path
from typing import Annotated

import typer

from climafuse.cli.data import source_path
from climafuse.cli.handler import CheckpointArgument, JsonOption, print_json, print_table, print_weights
from climafuse.errors import spelled_out


def infer(
    checkpoint: CheckpointArgument,
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
    from climafuse.facts import check_facts, window_box
    from climafuse.model.inference import answer, load_model

    if map_ is not None:
        from climafuse.report.maps import check_picture
        from climafuse.training.own_files import Result, check_result

        check_picture(map_)  # before the model is loaded for nothing
        check_result(map_, "--map", Result.PICTURE)
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
        from climafuse.backbones import labeled
        from climafuse.report.maps import draw_map, drawn_variables

        draw_map(
            found.window,
            drawn_variables(found.window.variables),
            path=map_,
            attention=found.attention,
            title=place,
            caption=labeled(found.text, model.model.backbone_identity),
            place=None if found.place is None else (found.place.latitude, found.place.longitude),
        )
    if as_json:
        print_json(
            {
                "backbone": dict(model.model.backbone_identity),
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
    print_weights(model.model.backbone_identity)
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


def _degrees(value: float, letters: str) -> str:
    """Such as 40.5°N; letters for negative and positive."""
    if letters == "WE":
        value = (value + 180) % 360 - 180
    return f"{abs(value):g}°{letters[value >= 0]}"


def _verdict(right: bool | None) -> str:
    return {True: "right", False: "wrong", None: "not in the fields"}[right]
