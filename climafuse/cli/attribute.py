"""`climafuse attribute`: where in the fields an answer comes from, and whether that can be believed."""

from __future__ import annotations

import time as clock
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from climafuse.cli.data import source_path
from climafuse.cli.handler import (
    CheckpointArgument,
    JsonOption,
    print_json,
    print_table,
    print_weights,
    progress_line,
)
from climafuse.errors import UsageError, spelled_out

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from climafuse.data.window import Window
    from climafuse.evaluation.pointing import Pointing, PointingGame
    from climafuse.facts import Fact
    from climafuse.model.inference import Answer, Reader

NUM_TOKENS = 5  # climate tokens told of


def attribute(
    checkpoint: CheckpointArgument,
    climate: Annotated[
        str | None,
        typer.Option(
            "--climate", help="Climate file, glob, Zarr store, or bundled sample.", show_default=False
        ),
    ] = None,
    time: Annotated[
        str | None, typer.Option("--time", help="Valid time, matched exactly.", show_default=False)
    ] = None,
    location: Annotated[
        str | None,
        typer.Option(
            "--location", help='Place name ("Paris, FR") or "latitude,longitude".', show_default=False
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="What to ask.", show_default=False)] = None,
    map_: Annotated[
        Path | None,
        typer.Option(
            "--map",
            help="Draw field, attention and occlusion to this .png, .pdf or .svg; a further fact to NAME-2, ….",
            show_default=False,
        ),
    ] = None,
    whole_grid: Annotated[
        bool, typer.Option("--whole-grid", help="Without --location, ask about all of the file at once.")
    ] = False,
    fill: Annotated[
        str,
        typer.Option(
            "--fill", help="What stands in hidden cells: mean, surroundings, climatology or missing."
        ),
    ] = "mean",
    sizes: Annotated[
        list[int] | None,
        typer.Option(
            "--size",
            metavar="CELLS",
            help="Side of hidden regions; may be repeated. Default: half and a quarter of the window.",
            show_default=False,
        ),
    ] = None,
    planted: Annotated[
        int | None,
        typer.Option(
            "--planted",
            metavar="N",
            help="Instead: plant signals into N test windows, and count how often attribution finds them.",
            min=1,
            max=100_000,
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of what --planted draws.", min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Show where an answer comes from: where its words looked, and what they need.

    With --planted, test whether either finds signals planted in known boxes, of the answers that are right. Windows are
    of the test times of the run, or of those of --climate.
    """
    if planted is not None:
        given = {
            "--time": time,
            "--location": location,
            "--prompt": prompt,
            "--map": map_,
            "--whole-grid": whole_grid,
        }
        _refuse([name for name, value in given.items() if value], "--planted")
        _play(checkpoint, climate, planted, fill, sizes, seed, as_json)
        return
    if climate is None or time is None or prompt is None:
        missing = [
            name
            for name, value in (("--climate", climate), ("--time", time), ("--prompt", prompt))
            if value is None
        ]
        raise UsageError(
            ", ".join(missing),
            expected="fields, a time and a question",
            received="nothing",
            remedy="Give them, or --planted N for a test of the method.",
        )
    _show(checkpoint, climate, time, location, prompt, map_, whole_grid, fill, sizes, as_json)


def _refuse(names: Sequence[str], beside: str) -> None:
    if names:
        raise UsageError(
            ", ".join(names), expected=f"nothing beside {beside}", received="a value", remedy="Leave it out."
        )


def _show(
    checkpoint: Path,
    climate: str,
    time: str,
    location: str | None,
    prompt: str,
    map_: Path | None,
    whole_grid: bool,
    fill: str,
    sizes: Sequence[int] | None,
    as_json: bool,
) -> None:
    """One answer, fact by fact."""
    from climafuse.data.times import format_time
    from climafuse.facts import parse, window_box
    from climafuse.model.inference import answer, load_model
    from climafuse.training.own_files import Result, check_result

    if map_ is not None:
        from climafuse.report.maps import check_picture

        check_picture(map_)  # before the model is loaded for nothing
        check_result(map_, "--map", Result.PICTURE)
    reader = load_model(checkpoint)
    start = clock.perf_counter()
    found = answer(
        reader, source_path(climate), time=time, location=location, prompt=prompt, whole_grid=whole_grid
    )
    facts: list[Fact | None] = [*parse(found.text, prompt)]
    facts = facts or [None]
    paths = [None if map_ is None else _numbered(map_, number) for number in range(1, len(facts) + 1)]
    for path in paths:
        if path is not None:  # how many there are is known only now
            check_result(path, "--map", Result.PICTURE)
    rows = [
        _attributed(reader, found, fact, fill, sizes, path) for fact, path in zip(facts, paths, strict=True)
    ]
    seconds = clock.perf_counter() - start
    box, window = window_box(found.window), found.window
    if as_json:
        print_json(
            {
                "backbone": dict(reader.model.backbone_identity),
                "prompt": prompt,
                "answer": found.text,
                "place": None if found.place is None else str(found.place),
                "time": [format_time(step) for step in window.time],
                "box": {"south": box.south, "north": box.north, "west": box.west, "east": box.east},
                "latitude": window.latitude,
                "longitude": window.longitude,
                "facts": rows,
                "seconds": seconds,
            }
        )
        return
    print_weights(reader.model.backbone_identity)
    typer.echo(spelled_out(f"{prompt} {found.text}"))
    for row in rows:
        _tell(row, window)


def _numbered(path: Path, number: int) -> Path:
    return path if number == 1 else path.with_stem(f"{path.stem}-{number}")


def _attributed(
    reader: Reader,
    found: Answer,
    fact: Fact | None,
    fill: str,
    sizes: Sequence[int] | None,
    path: Path | None,
) -> dict[str, Any]:
    """One fact of an answer: whether it is right, and where it comes from."""
    from climafuse.data.times import format_time
    from climafuse.evaluation.attribution import attention, occlusion
    from climafuse.evaluation.value_tokens import value_tokens
    from climafuse.facts import compare
    from climafuse.facts.check import exact_facts

    window = found.window
    asked = window, found.prompt, found.text, fact
    looked, needed = attention(reader, *asked), occlusion(reader, *asked, fill=fill, sizes=sizes)
    tokens, words = value_tokens(reader.processor, *asked[1:])
    row: dict[str, Any] = {"fact": None, "said": None, "field": None, "right": None, "exact": None}
    truth: Fact | None = None
    if fact is not None:
        (truth,) = exact_facts([fact], window)
        row = compare(fact, truth)
    row["words"] = [reader.processor.tokenizer.decode([tokens[place]]) for place in words]
    row["attention"] = looked and {
        "whole_box": looked.whole_box,
        "highest": _highest(window, looked.share.sum(axis=0)),
        "tokens": [{"token": label, "share": share} for label, share in looked.tokens[:NUM_TOKENS]],
        "share": looked.share,
    }
    row["occlusion"] = {
        "fill": fill,
        "log_probability": needed.log_probability,
        "highest": _highest(window, needed.drop),
        "by_variable": needed.by_variable,
        "by_time": {
            format_time(step): float(drop) for step, drop in zip(window.time, needed.by_step, strict=True)
        },
        "num_views": needed.num_views,
        "drop": needed.drop,
    }
    row["map"] = path
    if path is not None:
        from climafuse.backbones import labeled
        from climafuse.report.attribution import draw_attribution, field_of, marks_of

        draw_attribution(
            *field_of(window, fact),
            attention=looked,
            occlusion=needed,
            path=path,
            prompt=found.prompt,
            answer=labeled(found.text, reader.model.backbone_identity),
            right=row["right"],
            truth=row["field"],
            title=None if found.place is None else f"Around {found.place}",
            marks=None if fact is None or truth is None else marks_of(window, truth, [fact]),
        )
    return row


def _highest(window: Window, values: np.ndarray) -> dict[str, float]:
    row, column = divmod(int(values.argmax()), values.shape[1])
    return {
        "latitude": float(window.latitude[row]),
        "longitude": float(window.longitude[column]),
        "value": float(values[row, column]),
    }


def _tell(row: dict[str, Any], window: Window) -> None:
    if row["fact"] is None:
        typer.echo("\nNo checkable fact in this answer: what follows is about all of its words.")
    else:
        verdict = {True: "right", False: "wrong", None: "not in the fields"}[row["right"]]
        typer.echo(f"\n{row['fact']}: {row['said']}, from the fields {row['field'] or '-'}, {verdict}")
    typer.echo(f"words that carry it: {spelled_out(' '.join(repr(word) for word in row['words']))}")
    looked, needed = row["attention"], row["occlusion"]
    if looked is None:
        typer.echo("attention: none; the words of this fusion do not look each for itself")
    else:
        tokens = ", ".join(f"{one['token']} {one['share']:.0%}" for one in looked["tokens"])
        typer.echo(
            f"attention: {looked['whole_box']:.0%} on statistics of the whole box; highest at "
            f"{_place(looked['highest'])}; {spelled_out(tokens)}"
        )
    for name, drops in (("variable", needed["by_variable"]), ("time", needed["by_time"])):
        told = ", ".join(f"{key} {drop:.2f}" for key, drop in drops.items())
        typer.echo(f"log-probability ({needed['log_probability']:.2f}) lost without each {name}: {told}")
    typer.echo(
        f"and where a region is hidden: at most {needed['highest']['value']:.2f}, at "
        f"{_place(needed['highest'])} ({needed['num_views']} views)"
    )
    if row["map"] is not None:
        typer.echo(f"map: {row['map']}")


def _place(at: dict[str, float]) -> str:
    longitude = (at["longitude"] + 180) % 360 - 180
    return (
        f"{abs(at['latitude']):g}°{'S' if at['latitude'] < 0 else 'N'} "
        f"{abs(longitude):g}°{'W' if longitude < 0 else 'E'}"
    )


def _play(
    checkpoint: Path,
    climate: str | None,
    num: int,
    fill: str,
    sizes: Sequence[int] | None,
    seed: int,
    as_json: bool,
) -> None:
    """The pointing game."""
    from climafuse.evaluation.checkpoint import unseen_windows
    from climafuse.evaluation.controls import trained_folder
    from climafuse.evaluation.planting import plant
    from climafuse.evaluation.pointing import TOLERANCE, pointing_game
    from climafuse.model.inference import load_model

    start = clock.perf_counter()
    folder = trained_folder(checkpoint)
    reader = load_model(folder)
    windows, unseen = unseen_windows(
        reader, folder, climate=climate, num=num, say=lambda line: typer.echo(spelled_out(line), err=True)
    )
    planted = plant(windows, seed=seed)
    game = pointing_game(reader, planted, fill=fill, sizes=sizes, progress=progress_line("planted windows"))
    if as_json:
        print_json(
            {
                "backbone": dict(reader.model.backbone_identity),
                "checkpoint": checkpoint,
                "climate": climate,
                "num_windows": len(windows),
                "unseen": unseen,
                "seed": seed,
                "fill": fill,
                "sizes": sizes,
                "tolerance_cells": TOLERANCE,
                "signals": game.to_dict(),
                "seconds": clock.perf_counter() - start,
            }
        )
        return
    print_weights(reader.model.backbone_identity)
    _print_game(game)


def _print_game(game: PointingGame) -> None:
    methods = list(dict.fromkeys(method for row in game.table.values() for method in row))
    rows = []
    for name, row in game.table.items():
        cells: list[object] = [name, game.planted[name], game.right[name]]
        for method in methods:
            cells += _figures(row.get(method))
        rows.append(cells)
    header = ["planted signal", "windows", "said rightly"]
    for method in methods:
        header += [method, "95 %", "chance: area", "other boxes"]
    print_table(rows, header=header)


def _figures(found: Pointing | None) -> list[object]:
    if found is None or not found.num:
        return [None] * 4
    low, high = found.interval
    chance = None if found.elsewhere != found.elsewhere else f"{found.elsewhere:.2f}"
    return [f"{found.accuracy:.2f}", f"{low:.2f} to {high:.2f}", f"{found.area:.2f}", chance]
